"""Models of the Hugging Face Hub and of directories: saved, shared, loaded, and registered by name."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import Tensor

from minmax_entropy.card import CARD_NAME, EXAMPLE_NAME, MARK, write_card
from minmax_entropy.configuration import CONFIG_NAME, LOADING, SavedConfig, build_without_memory, read_config, to_config
from minmax_entropy.download import Repository
from minmax_entropy.model import WSLModel
from minmax_entropy.presets import resolve_preset
from minmax_entropy.weights import (
    INDEX_NAME,
    WEIGHT_FILES,
    SavedWeights,
    check_finite,
    check_fit,
    load_state_dict,
    read_state_dict,
    shapes_of,
    weight_files,
    write_weights,
)

_logger = logging.getLogger(__name__)

LOCAL, HUB = "local-dir:", "hf-hub:"
SOURCES = (LOCAL, HUB, "hf_hub:")  # timm knows the last one as well
HEADS = ("localizer.", "classifier.")
FRESH_HEADS = "%s: %d classes instead of %s, both heads start afresh"
FRESH_CONVOLUTION = "%s: %d channels instead of %s, the first convolution starts afresh"


def save_pretrained(
    model: WSLModel,
    directory: str | Path,
    *,
    class_names: list[str] | None = None,
    metrics: dict[str, Any] | None = None,
    license: str | None = None,
    training_data: str | list[str] | None = None,
    example: str | Path | Image.Image | None = None,
    max_shard_size: int | str = "5GB",
    repo_id: str | None = None,
) -> Path:
    """Write a model to a directory; see `WSLModel.save_pretrained`. `repo_id` is what its card tells to load."""
    directory = Path(directory).expanduser().resolve()
    if class_names is None:
        class_names = model.class_names
    elif not isinstance(class_names, str):
        class_names = list(class_names)
    given = dict(metrics=metrics, license=license, training_data=training_data)
    info = {**model.info, "metrics": None, **{key: value for key, value in given.items() if value is not None}}
    config = to_config(model, class_names, info)
    check_target(directory)
    with _replacing(directory) as staging:
        (staging / CONFIG_NAME).write_text(config, encoding="utf-8")
        write_weights(model.state_dict(), staging, max_shard_size)
        for path in staging.glob("*.safetensors"):
            shutil.copymode(staging / CONFIG_NAME, path)  # safetensors makes files that only their owner can read
        source = f"{HUB}{repo_id}" if repo_id else f"{LOCAL}{directory.name}"
        write_card(model, staging, source, class_names=class_names, info=info, example=example)
    return directory


def save_settings(model: WSLModel, directory: str | Path) -> Path:
    """Write the configuration of a saved model anew, with the model's settings as they are now; the weights stay.

    Args:
        model: as it was loaded from the directory, with other settings such as `mask_threshold`.
        directory: of the saved model.

    Returns:
        Path of the configuration.

    Raises:
        FileNotFoundError: there is no saved model.
        ValueError: the model would not load again.
    """
    path = Path(directory).expanduser() / CONFIG_NAME
    read_config(path)
    text = to_config(model, model.class_names, model.info)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def push_to_hub(
    model: WSLModel,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    **keywords: Any,
) -> str:
    """Upload a model; see `WSLModel.push_to_hub`. It is written to the disk first, so that one that can't be is not
    announced by an empty repository."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not the name of a repository, ORG/NAME")
    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        saved = save_pretrained(model, Path(folder) / "model", repo_id=repo_id, **keywords)
        try:
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if branch is not None:
                api.create_branch(name, branch=branch, exist_ok=True)
            own_card = _has_own_card(name, branch, token)
            return api.upload_folder(
                repo_id=name,
                folder_path=saved,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                ignore_patterns=[CARD_NAME] if own_card else None,
                delete_patterns=["model*.safetensors", INDEX_NAME, *([] if own_card else [EXAMPLE_NAME])],
            )
        except HFValidationError as error:
            raise ValueError(f"{repo_id!r} is not the name of a repository, ORG/NAME: {error}") from error
        except Exception as error:  # of the network or the server; the client has many kinds
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise OSError(f"{repo_id} could not be uploaded to {api.endpoint}: {error}{cause}") from error


def _has_own_card(repo_id: str, branch: str | None, token: str | bool | None) -> bool:
    """Whether a repository has a card that somebody wrote."""
    try:
        path = huggingface_hub.hf_hub_download(repo_id, CARD_NAME, revision=branch, token=token)
    except Exception:  # there is none, as in every new repository
        return False
    return MARK not in Path(path).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """A directory to write to, which then takes the place of `directory`; other files than a model's are kept.

    What can't be renamed, the current directory and mount points, gets the files one by one, the configuration last.
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
    """Links stay links: what they point to is not this model's."""
    if item.is_dir() and not item.is_symlink():
        shutil.copytree(item, target, symlinks=True)
    elif item.is_file() or item.is_symlink():
        shutil.copy2(item, target, follow_symlinks=False)


def _move_into(new: Path, directory: Path) -> None:
    """Move files one by one; from the first, the old configuration, to the last, the new one, there is no model."""
    for item in sorted(directory.iterdir(), key=lambda item: item.name != CONFIG_NAME):
        is_model = item.name in (CONFIG_NAME, CARD_NAME, EXAMPLE_NAME) or WEIGHT_FILES.fullmatch(item.name)
        if is_model and (item.is_file() or item.is_symlink()):
            item.unlink()
    for item in sorted(new.iterdir(), key=lambda item: item.name == CONFIG_NAME):
        item.replace(directory / item.name)
    new.rmdir()


def _swap(new: Path, directory: Path) -> None:
    """Put `new` in the place of `directory`, which stays as it was if that fails."""
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


def check_target(directory: str | Path) -> None:
    """Refuse a place where `save_pretrained` would overwrite something else than a saved model.

    Raises:
        FileExistsError: the place is a file, or a directory that holds something else.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file, a model is a directory")
    if directory.exists() and any(directory.iterdir()):
        try:
            read_config(directory / CONFIG_NAME)
        except (FileNotFoundError, ValueError) as error:
            raise FileExistsError(
                f"{directory} is not empty and not a saved model, nothing was written: {error}"
            ) from None


def load_model(
    source: str,
    weights: bool = True,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **overrides: Any,
) -> WSLModel:
    """A model from `local-dir:PATH` or `hf-hub:ORG/NAME[@REVISION]`, in training mode.

    Args:
        source: where the model is.
        weights: load them; False gives the architecture alone, to train from scratch: nothing is frozen of BatchNorm.
        revision: in place of @REVISION.
        cache_dir, token, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`.
        overrides: keywords of `WSLModel` (and those of a `preset`) that replace the saved ones; all others are the
            backbone's. Another `num_classes` gives fresh heads, another `in_chans` a fresh first convolution (and
            BatchNorm layers that are trained), said in one log line; `img_size` resamples position embeddings; whatever
            else changes a shape is an error.

    Raises:
        FileNotFoundError: no such model, revision or file, or not in the cache while offline.
        ConnectionError: the server can't be reached, or was lost half-way.
        ValueError: what is there can't be read, can't be trusted or does not fit.
    """
    client = dict(cache_dir=cache_dir, token=token, force_download=force_download, local_files_only=local_files_only)
    config, files = _find(source, revision, weights, client)
    refused = sorted(overrides.keys() & set(LOADING))
    if refused:
        raise TypeError(f"{', '.join(refused)}: the weights of a saved model are its own")
    img_size = overrides.pop("img_size", None)
    overrides = resolve_preset(overrides.pop("preset", None), overrides)
    options = config.with_overrides(overrides)
    if not weights:
        options["freeze_bn"] = overrides.get("freeze_bn", False)
    with _blaming(config):
        shapes = build_without_memory(config.with_overrides({}))
    if overrides:  # what fails from here on may be the caller's
        shapes = build_without_memory(options)
    saved = SavedWeights(files)
    where = str(files[0] if len(files) == 1 else config.path.parent)
    fresh = _fresh_keys(shapes, config, options, saved, source) if weights else set()
    if weights:
        check_fit(shapes, saved, where, fresh)
        check_finite(saved, where, fresh)
    with contextlib.nullcontext() if overrides else _blaming(config):
        model = WSLModel(**options)
    model.load_state_dict({key: value for key, value in saved.items() if key not in fresh}, strict=False)
    if img_size is not None:
        model.set_input_size(img_size)
    model.class_names = config.class_names if model.num_classes == config.model["num_classes"] else None
    if weights:
        model.info = {key: value for key, value in config.info.items() if key != "metrics" or not fresh}
    return model


def _find(source: str, revision: str | None, weights: bool, client: dict) -> tuple[SavedConfig, list[Path]]:
    """The configuration of a source, and the files of its weights where they are asked for."""
    prefix = next(prefix for prefix in SOURCES if source.startswith(prefix))
    place = source.removeprefix(prefix)
    if prefix == LOCAL:
        if revision:
            raise ValueError(f"{source} is a directory, which has no revision {revision!r}")
        directory = Path(place).expanduser()
        return read_config(directory / CONFIG_NAME), weight_files(directory) if weights else []
    name, _, asked = place.partition("@")
    if asked and revision and asked != revision:
        raise ValueError(f"{source} is asked for at revision {revision!r} as well: give one of them")
    repository = Repository(name, revision or asked or None, **client)
    config = read_config(repository.config())
    return config, repository.weights(config.path) if weights else []


@contextlib.contextmanager
def _blaming(config: SavedConfig) -> Iterator[None]:
    """Whatever fails is a ValueError that names the configuration: timm's factories raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{config.path}: no model can be built from it: {error}") from error


def _fresh_keys(model: WSLModel, config: SavedConfig, options: dict, saved: SavedWeights, source: str) -> set[str]:
    """Names of the weights that start afresh, for another number of classes or channels than the saved one."""
    fresh: set[str] = set()
    was, now = config.model, options
    if now["num_classes"] != was["num_classes"]:
        fresh |= _heads(model, saved)
        _logger.info(FRESH_HEADS, source, now["num_classes"], was["num_classes"])
    channels = was.get("in_chans", 3)
    if now.get("in_chans", 3) != channels:
        fresh |= _first_convolution(model, options)
        _logger.info(FRESH_CONVOLUTION, source, now["in_chans"], channels)
    return fresh


def _heads(model: WSLModel, saved: Mapping[str, Tensor]) -> set[str]:
    return {key for key in (*model.state_dict(), *saved) if key.startswith(HEADS)}


def _first_convolution(model: WSLModel, options: dict) -> set[str]:
    """Names of the weights whose shape depends on the number of channels."""
    other = build_without_memory({**options, "in_chans": model.in_chans + 1})
    own, others = shapes_of(model.state_dict()), shapes_of(other.state_dict())
    return {key for key in own if own[key] != others[key]}


def load_checkpoint(model: WSLModel, path: str | Path, given: Collection[str] = ()) -> None:
    """Load the weights of a whole model from a file; every key must fit.

    Args:
        model: the model to load into.
        path: a `.safetensors` file, or a state dict of `torch.save`.
        given: "num_classes" lets heads of another number of classes start afresh, "in_chans" the first convolution.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that can't be read, can't be trusted or does not fit.
    """
    state = read_state_dict(path)
    saved, own = shapes_of(state), shapes_of(model.state_dict())
    differ = {key for key in own if key in saved and saved[key] != own[key]}
    fresh: set[str] = set()
    if "num_classes" in given and differ & (heads := _heads(model, state)):
        fresh |= heads
        _logger.info(FRESH_HEADS, path, model.num_classes, "those of the file")
    if "in_chans" in given and differ - fresh:
        first = _first_convolution(model, model.config)
        if differ & first:
            fresh |= first
            _logger.info(FRESH_CONVOLUTION, path, model.in_chans, "those of the file")
    load_state_dict(model, state, str(path), fresh)
