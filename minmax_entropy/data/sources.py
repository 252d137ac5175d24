"""Choice of the reader that opens a source, by its prefix or by the contents of its folder."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minmax_entropy.data.dataset import LabelledImages, LabelledStream
from minmax_entropy.data.selection import check_split

FALLBACK = "folders"


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reader of a layout: a function that opens it, and one that recognizes its folder (None: by its prefix alone)."""

    prefix: str
    open: Callable[..., LabelledImages | LabelledStream]
    detect: Callable[[Path], bool] | None
    reads_folder: bool

    @property
    def options(self) -> list[str]:
        """Names of the options besides source, split and classes."""
        return list(inspect.signature(self.open).parameters)[3:]


_READERS: dict[str, Reader] = {}


def register_reader(
    prefix: str, detect: Callable[[Path], bool] | None = None, reads_folder: bool = True
) -> Callable[[Callable], Callable]:
    """Register a function `(source, split, classes, **options)` as the reader of `prefix:SOURCE`.

    Args:
        prefix: lower-case letters and digits, two or more.
        detect: function that returns whether a folder without a prefix has this layout.
        reads_folder: the function takes the `Path` of an existing folder; False passes on whatever follows the prefix.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]+", prefix):
        raise ValueError(f"a prefix is two or more lower-case letters and digits, got {prefix!r}")

    def decorator(function: Callable) -> Callable:
        _READERS[prefix] = Reader(prefix, function, detect, reads_folder)
        return function

    return decorator


def list_readers() -> list[str]:
    """Return the known prefixes, sorted."""
    return sorted(_READERS)


def open_split(
    source: str | Path | Any, split: str = "train", classes: Sequence[str] | None = None, **options: Any
) -> LabelledImages | LabelledStream:
    """Open one part of a data set.

    Args:
        source: what to read; `docs/data.md` describes each of them:

            - "glas:FOLDER", "cub:FOLDER", "cub5:FOLDER", "flowers:FOLDER": the extracted archives of GlaS,
              CUB-200-2011, five of its species, and Oxford Flowers 102;
            - "lists:FOLDER": `train.csv`, `valid.csv`, `test.csv` with rows `image,mask,class`;
            - "folders:FOLDER": `[images/][train/]<class>/*`, with `masks/` and `boxes.csv` where they exist;
            - "hf:NAME_OR_PATH": Hugging Face `datasets`, or an object of that library itself;
            - "shapes:": the bundled synthetic images;
            - a folder without a prefix: lists if it has any, else the layout it is recognized as, else class folders. A
              `Path` never has a prefix.
        split: "train", "valid" or "test".
        classes: take only these, and index them in this order. All of them must have images in "train", at least
            one in the other parts.
        options: options of the reader; see its function.

    Returns:
        `LabelledImages`, or a `LabelledStream` for "hf:" with `streaming=True`.

    Raises:
        FileNotFoundError: no such folder, list, image, or part.
        ValueError: an empty folder, a class without images, a malformed list, or a folder with several layouts.
        TypeError: an option that the reader does not have.
        ImportError: a package of an extra is missing.
    """
    check_split(split)
    prefix, place = _split_prefix(source)
    if prefix is None:
        reader = _READERS["lists"] if "lists" in options else _recognize(Path(place), source)
    else:
        reader = _READERS[prefix]
    if reader.reads_folder:
        place = _folder(place, source)
    unknown = [name for name in options if name not in reader.options]
    if unknown:
        known = ", ".join(reader.options) or "none"
        raise TypeError(f"{reader.prefix}: has no option {unknown[0]!r}; its options: {known}")
    return reader.open(place, split, classes, **options)


def _split_prefix(source: str | Path | Any) -> tuple[str | None, Any]:
    if isinstance(source, Path):
        return None, source
    if not isinstance(source, str):
        if type(source).__module__.partition(".")[0] == "datasets":
            return "hf", source
        raise TypeError(f"a source is a path, a text, or an object of `datasets`, got {type(source).__name__}")
    prefix, separator, place = source.partition(":")
    return (prefix, place) if separator and prefix in _READERS else (None, source)


def _recognize(folder: Path, source: str | Path) -> Reader:
    """Return the reader of a folder without a prefix; lists, which are put there by hand, take precedence."""
    folder = _folder(folder, source)
    found = [reader for reader in _READERS.values() if reader.detect is not None and reader.detect(folder)]
    lists = [reader for reader in found if reader.prefix == "lists"]
    if len(found) > 1 and not lists:
        choice = " or ".join(f"{reader.prefix}:{folder}" for reader in found)
        raise ValueError(f"{folder} holds several data sets: say which one, {choice}")
    return (lists or found or [_READERS[FALLBACK]])[0]


def _folder(place: str | Path, source: str | Path) -> Path:
    if str(place) == "":
        raise ValueError(f"{source!r} names no folder: write {source}FOLDER")
    folder = Path(place).expanduser()
    if not folder.is_dir():
        hint = f" (known prefixes: {', '.join(list_readers())})" if ":" in str(source) else ""
        raise FileNotFoundError(f"no folder {folder}{hint}")
    return folder
