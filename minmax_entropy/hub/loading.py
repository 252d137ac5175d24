"""Loading of models from a folder or from the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minmax_entropy.hub.bounds import build_without_memory
from minmax_entropy.hub.config import LOADING, SavedConfig, read_config
from minmax_entropy.hub.download import Repository
from minmax_entropy.hub.names import CONFIG_NAME, LOCAL, SOURCES
from minmax_entropy.hub.weights import (
    SavedWeights,
    check_finite,
    check_fit,
    load_state_dict,
    read_state_dict,
    shapes_of,
    weight_files,
)
from minmax_entropy.presets import resolve_preset

_logger = logging.getLogger(__name__)

HEADS = ("localizer.", "classifier.")
FRESH_HEADS = "%s: %d classes instead of %s, both heads start afresh"
FRESH_CONVOLUTION = "%s: %d channels instead of %s, the first convolution starts afresh"


def load_model(
    kind: type[nn.Module],
    source: str,
    weights: bool = True,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Return a model from `local-dir:PATH` or `hf-hub:ORG/NAME[@REVISION]`, in training mode.

    Args:
        kind: class of the model.
        source: name of the folder or repository, with its prefix.
        weights: load the weights; False gives the architecture alone, to train from scratch, without frozen BatchNorm.
        revision: branch, tag or commit, in place of @REVISION.
        cache_dir, token, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`.
        overrides: keywords of the class (and those of a `preset`) that replace the saved ones; all others are the
            backbone's. Another `num_classes` gives fresh heads, another `in_chans` a fresh first convolution (and
            BatchNorm layers that are trained), each with a log line; `img_size` resamples position embeddings; any
            other change of a shape is an error.

    Raises:
        FileNotFoundError: no such model, revision or file, or not in the cache while offline.
        ConnectionError: the server can't be reached, or the connection was lost.
        ValueError: the files can't be read, can't be trusted or do not fit.
    """
    client = dict(cache_dir=cache_dir, token=token, force_download=force_download, local_files_only=local_files_only)
    config, files = _find(kind, source, revision, weights, client)
    refused = sorted(overrides.keys() & set(LOADING))
    if refused:
        raise TypeError(f"{', '.join(refused)}: the weights of a saved model are its own")
    img_size = overrides.pop("img_size", None)
    if (preset := overrides.pop("preset", None)) is not None:
        overrides = resolve_preset(preset, overrides)
    options = config.with_overrides(overrides)
    if not weights:
        options["freeze_bn"] = overrides.get("freeze_bn", False)
    with _config_errors(config):
        shapes = build_without_memory(kind, config.with_overrides({}))
    if overrides:  # errors from here on may be the caller's
        shapes = build_without_memory(kind, options)
    saved = SavedWeights(files)
    where = str(files[0] if len(files) == 1 else config.path.parent)
    fresh = _fresh_keys(shapes, config, options, saved, source) if weights else set()
    if weights:
        check_fit(shapes, saved, where, fresh)
        check_finite(saved, where, fresh)
    with contextlib.nullcontext() if overrides else _config_errors(config):
        model = kind(**options)
    model.load_state_dict({key: value for key, value in saved.items() if key not in fresh}, strict=False)
    if img_size is not None:
        model.set_input_size(img_size)
    model.class_names = config.class_names if model.num_classes == config.model["num_classes"] else None
    if weights:
        model.info = {key: value for key, value in config.info.items() if key != "metrics" or not fresh}
    return model


def _find(
    kind: type[nn.Module], source: str, revision: str | None, weights: bool, client: dict
) -> tuple[SavedConfig, list[Path]]:
    """Return the configuration of a source, and the files of its weights if they are asked for."""
    prefix = next(prefix for prefix in SOURCES if source.startswith(prefix))
    place = source.removeprefix(prefix)
    if prefix == LOCAL:
        if revision:
            raise ValueError(f"{source} is a directory, which has no revision {revision!r}")
        directory = Path(place).expanduser()
        return read_config(directory / CONFIG_NAME, kind), weight_files(directory) if weights else []
    name, _, asked = place.partition("@")
    if asked and revision and asked != revision:
        raise ValueError(f"{source} is asked for at revision {revision!r} as well: give one of them")
    repository = Repository(name, revision or asked or None, **client)
    config = read_config(repository.config(), kind)
    return config, repository.weights(config.path) if weights else []


@contextlib.contextmanager
def _config_errors(config: SavedConfig) -> Iterator[None]:
    """Turn any error into a ValueError that names the configuration: timm's factories raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{config.path}: no model can be built from it: {error}") from error


def _fresh_keys(model: nn.Module, config: SavedConfig, options: dict, saved: SavedWeights, source: str) -> set[str]:
    """Return the names of weights that start afresh because the number of classes or channels is not the saved one."""
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


def _heads(model: nn.Module, saved: Mapping[str, Tensor]) -> set[str]:
    return {key for key in (*model.state_dict(), *saved) if key.startswith(HEADS)}


def _first_convolution(model: nn.Module, options: dict) -> set[str]:
    """Return the names of the weights whose shape depends on the number of channels."""
    other = build_without_memory(type(model), {**options, "in_chans": model.in_chans + 1})
    own, others = shapes_of(model.state_dict()), shapes_of(other.state_dict())
    return {key for key in own if own[key] != others[key]}


def load_checkpoint(model: nn.Module, path: str | Path, given: Collection[str] = ()) -> None:
    """Load the weights of a whole model from a file; every key must fit.

    Args:
        model: the model to load into.
        path: a `.safetensors` file, or a state dict of `torch.save`.
        given: "num_classes" lets heads for another number of classes start afresh, "in_chans" the first convolution.

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
