"""Folders of saved models, written under a temporary name and then moved into place."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from minmax_entropy.hub.names import CARD_NAME, CONFIG_NAME, EXAMPLE_NAME
from minmax_entropy.hub.weights import WEIGHT_FILES


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yield a directory to write to, which then replaces `directory`; files that are not a model's are kept.

    Directories that can't be renamed (the current one, mount points) get the files one by one, the configuration last.
    """
    stays = directory.exists() and not _may_be_renamed(directory)
    parent = directory if stays else directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / f".{directory.name}.{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        for item in sorted(directory.iterdir()) if directory.exists() else ():
            is_model = item.name == CONFIG_NAME or WEIGHT_FILES.fullmatch(item.name)
            if not is_model and item != staging and (not stays or item.name in (CARD_NAME, EXAMPLE_NAME)):
                _copy(item, staging / item.name)
        yield staging
        if stays:
            _move_into(staging, directory)
        else:
            _swap(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _may_be_renamed(directory: Path) -> bool:
    is_current = Path(os.path.realpath(os.curdir)).is_relative_to(directory)
    return not (is_current or os.path.ismount(directory)) and os.access(directory.parent, os.W_OK)


def _copy(item: Path, target: Path) -> None:
    """Copy an item; links stay links, since their targets are not this model's."""
    if item.is_dir() and not item.is_symlink():
        shutil.copytree(item, target, symlinks=True)
    elif item.is_file() or item.is_symlink():
        shutil.copy2(item, target, follow_symlinks=False)


def _move_into(new: Path, directory: Path) -> None:
    """Move files one by one; until the configuration, removed first, is written last, there is no model."""
    for item in sorted(directory.iterdir(), key=lambda item: item.name != CONFIG_NAME):
        is_model = item.name in (CONFIG_NAME, CARD_NAME, EXAMPLE_NAME) or WEIGHT_FILES.fullmatch(item.name)
        if is_model and (item.is_file() or item.is_symlink()):
            item.unlink()
    for item in sorted(new.iterdir(), key=lambda item: item.name == CONFIG_NAME):
        item.replace(directory / item.name)
    new.rmdir()


def _swap(new: Path, directory: Path) -> None:
    """Replace `directory` by `new`; if that fails, `directory` stays unchanged."""
    old = new.with_name(f"{new.name}.old")
    if directory.exists():
        shutil.copymode(directory, new)
        directory.rename(old)
    try:
        new.rename(directory)
    except BaseException:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
