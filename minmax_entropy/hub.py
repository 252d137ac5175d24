"""Weights: save a model to a directory, load one from a directory or from the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import huggingface_hub
import safetensors
import safetensors.torch
import torch
from torch import nn

from minmax_entropy.model import WSLModel
from minmax_entropy.presets import resolve_preset
from minmax_entropy.registry import unknown_name
from minmax_entropy.version import __version__

_logger = logging.getLogger(__name__)

SOURCES = ("local-dir:", "hf-hub:")
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

# Model name or name.tag -> source (`hf-hub:ORG/NAME`) with weights of the whole model. Only what exists is listed.
PRETRAINED: dict[str, str] = {}


def save_pretrained(
    model: WSLModel,
    directory: str | Path,
    *,
    class_names: list[str] | None = None,
    metrics: dict[str, float] | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors`, all that `create_model("local-dir:...")` needs.

    The directory is written under a temporary name and then renamed: it is whole or not there. The model of an earlier
    call is replaced, other files beside it stay.

    Args:
        model: a model whose backbone and heads are given by name (a module can't be written into a config).
        directory: where to; its parent is made.
        class_names: names of the classes, in the order of the logits; by default those the model has.
        metrics: figures to keep beside the weights.

    Raises:
        ValueError: the model has a backbone or head given as a module, or the number of names is not that of classes.
        FileExistsError: the directory holds something else than a saved model.
    """
    directory = Path(directory).expanduser().absolute()
    modules = [key for key in ("backbone", "localizer", "classifier") if isinstance(model.config[key], nn.Module)]
    if modules:
        raise ValueError(
            f"{', '.join(modules)} of this model were given as modules: register them (register_backbone, "
            "register_head) and build the model by name to save it with its configuration"
        )
    class_names = class_names if class_names is not None else getattr(model, "class_names", None)
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(f"{len(class_names)} class names for {model.num_classes} classes")
    check_target(directory)
    earlier = sorted(directory.iterdir()) if directory.exists() else []
    config = {
        "library_name": "minmax_entropy",
        "library_version": __version__,
        "model": model.config,
        "data_config": model.data_config,
        "class_names": class_names,
        "metrics": metrics or {},
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        os.chmod(staging, 0o755)
        (staging / CONFIG_NAME).write_text(json.dumps(config, indent=2, default=_plain) + "\n")
        # Copies: parameters that modules share are written once for each of their names.
        state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(state, staging / WEIGHTS_NAME, metadata={"format": "pt"})
        for item in earlier:
            if item.name not in (CONFIG_NAME, WEIGHTS_NAME):
                (shutil.copytree if item.is_dir() else shutil.copy2)(item, staging / item.name)
        _swap(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return directory


def _swap(new: Path, directory: Path) -> None:
    """Put `new` in the place of `directory`, which stays as it was if that fails."""
    old = new.with_name(f"{new.name}.old")
    if directory.exists():
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
            _read_config(directory)
        except (FileNotFoundError, ValueError) as error:
            raise FileExistsError(
                f"{directory} is not empty and not a saved model, nothing was written: {error}"
            ) from None


def load_model(source: str, weights: bool = True, **overrides) -> WSLModel:
    """A model from `local-dir:PATH` or `hf-hub:ORG/NAME[@REVISION]`.

    Args:
        source: where the model is.
        weights: load them; False gives the architecture alone.
        overrides: keywords of `WSLModel` (and those of a `preset`) that replace the saved ones; all others are the
            backbone's. Another `num_classes` gives fresh heads.

    Raises:
        FileNotFoundError, ValueError: no such model, or one that can't be read.
    """
    directory = _directory(source)
    config = _read_config(directory)
    overrides = resolve_preset(overrides.pop("preset", None), overrides)
    known = WSLModel.config_keywords()
    options = {**config["model"], **{key: value for key, value in overrides.items() if key in known}}
    extra = {key: value for key, value in overrides.items() if key not in known}
    model = WSLModel(**{**options, "backbone_kwargs": {**(options.get("backbone_kwargs") or {}), **extra}})
    if not overrides.keys() & {"img_size", "in_chans", "data_config"}:
        model.data_config.update({key: _tuple(value) for key, value in config.get("data_config", {}).items()})
    fresh_heads = model.num_classes != config["model"]["num_classes"]
    model.class_names = None if fresh_heads else config.get("class_names")
    if weights:
        state = read_state_dict(directory / WEIGHTS_NAME)
        if fresh_heads:
            _logger.info(
                "%s: %d classes instead of %d, both heads start afresh",
                source,
                model.num_classes,
                config["model"]["num_classes"],
            )
            state = {key: value for key, value in state.items() if not key.startswith(("localizer.", "classifier."))}
            state.update({k: v for k, v in model.state_dict().items() if k.startswith(("localizer.", "classifier."))})
        load_state_dict(model, state, str(directory / WEIGHTS_NAME))
    return model


def load_checkpoint(model: WSLModel, path: str | Path) -> None:
    """Load the weights of a whole model from a file; every key must fit."""
    load_state_dict(model, read_state_dict(path), str(path))


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file, or of a `torch.save` file read with `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds something else than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} can't be read as weights: {error}") from error
    except Exception as error:  # pickle's own errors, of which there are many
        raise ValueError(f"{path} can't be read safely as weights (weights_only=True): {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    return state


def load_state_dict(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load with an error that lists every key that is missing, left over or of another shape; all or nothing."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"left over {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:40]) + (f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise ValueError(f"{source} does not fit the model ({len(problems)} keys):\n  {shown}")
    model.load_state_dict(state)


def _directory(source: str) -> Path:
    prefix = next(prefix for prefix in SOURCES if source.startswith(prefix))
    place = source.removeprefix(prefix)
    if prefix == "local-dir:":
        return Path(place).expanduser()
    repository, _, revision = place.partition("@")
    return Path(
        huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]
        )
    )


def _read_config(directory: Path) -> dict:
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no saved model in {directory}: {CONFIG_NAME} is missing")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library_name") != "minmax_entropy":
        raise ValueError(f"{path} is not a configuration of minmax_entropy")
    if not isinstance(config.get("model"), dict) or not {"backbone", "num_classes"} <= set(config["model"]):
        raise ValueError(f"{path} has no model with a backbone and num_classes")
    known = WSLModel.config_keywords()
    model = {key: _tuple(value) for key, value in config["model"].items()}
    for key in model:
        if key not in known:
            raise ValueError(f"{path}: {unknown_name('keyword', key, known)}")
    return {**config, "model": model}


def _plain(value: object) -> object:
    """Numbers and lists of numpy and torch, as JSON has them."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} {value!r} can't be written to {CONFIG_NAME}")
    return value.tolist()


def _tuple(value: object) -> object:
    """JSON's lists are the tuples that were written."""
    return tuple(value) if isinstance(value, list) else value
