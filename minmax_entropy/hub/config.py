"""Configuration of a saved model, `config.json`: all but its weights, read without trust and refused with reasons."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import timm
from torch import nn

from minmax_entropy._registry import unknown_name
from minmax_entropy.hub.bounds import build_without_memory, check_size
from minmax_entropy.hub.names import CONFIG_NAME, LIBRARY_NAME
from minmax_entropy.hub.untrusted import check_values, read_json
from minmax_entropy.hub.weights import check_fit
from minmax_entropy.version import __version__

# Facts about the weights, beside the model's own settings, as in `WSLModel.info`.
INFO = ("license", "training_data", "metrics", "backbone_weights")
KEYS = ("library_name", "library_version", "model", "data_config", "class_names", *INFO)
# timm's keywords for the source of weights: saved models have no use for them, and they could name any file.
LOADING = (
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
)


@dataclasses.dataclass(frozen=True)
class SavedConfig:
    """Configuration read from a file.

    Attributes:
        kind: class of the model, which has `config_keywords()` and `config_defaults()`.
        path: path of the file, for messages.
        model: keywords of the class.
        data_config: preprocessing: mean, std, input size, interpolation, crop.
        class_names: names of the classes in the order of the logits, or None.
        info: licence, training data, metrics and the backbone's weights, as far as known.
    """

    kind: type[nn.Module]
    path: Path
    model: dict
    data_config: dict
    class_names: list[str] | None
    info: dict

    def with_overrides(self, overrides: dict) -> dict:
        """Return the keywords of the class: the saved ones, updated with `overrides`; unknown ones go to the
        backbone."""
        known = self.kind.config_keywords()
        given = {key: value for key, value in overrides.items() if key in known}
        if given.get("freeze_bn") == "pretrained":
            del given["freeze_bn"]  # stays as in training
        backbone = {key: value for key, value in overrides.items() if key not in known}
        options = {**self.kind.config_defaults(), **self.model, **given}
        if options["num_classes"] != self.model["num_classes"]:  # settings of the old heads
            options.update({"class_weights": None, "min_probability": 0.0, "empty_classes": (), **given})
        if options["in_chans"] != self.model["in_chans"]:  # the layers after a fresh convolution have to follow it
            options.update({"freeze_bn": False, **given})
        options["data_config"] = {**self.data_config, **(given.get("data_config") or {})}
        options["backbone_kwargs"] = {**(options.get("backbone_kwargs") or {}), **backbone}
        return options


def to_config(model: nn.Module, class_names: list[str] | None, info: dict) -> str:
    """Return the text of `config.json` for a model.

    Raises:
        ValueError: parts of the model were given as modules, the number of names differs from that of classes, or the
            model no longer matches its settings, so that it would not load again.
        TypeError: a value that JSON can't represent.
    """
    modules = [key for key in ("backbone", "localizer", "classifier") if isinstance(model.config[key], nn.Module)]
    if modules:
        raise ValueError(
            f"{', '.join(modules)} of this model were given as modules: register them (register_backbone, "
            "register_head) and build the model by name to save it with its configuration"
        )
    if isinstance(class_names, str) or any(not isinstance(key, str) for key in info.get("metrics") or {}):
        raise TypeError("class_names must be a list of strings, and the names of metrics must be strings")
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(f"{len(class_names)} class names for {model.num_classes} classes")
    settings = {key: value for key, value in model.settings().items() if key != "data_config"}
    backbone = settings["backbone_kwargs"] or {}
    settings["backbone_kwargs"] = {key: value for key, value in backbone.items() if key not in LOADING} or None
    config = {
        "library_name": LIBRARY_NAME,
        "library_version": __version__,
        "model": settings,
        "data_config": model.data_config,
        "class_names": class_names,
        **{key: info.get(key) for key in INFO},
        "metrics": figures_as_json(info.get("metrics")),
    }
    text = json.dumps(config, indent=2, default=_plain, allow_nan=False)
    written = json.loads(text)  # never write what could not be read
    check_values(written)
    try:
        saved = _checked(type(model), Path(CONFIG_NAME), written)
        check_fit(build_without_memory(saved.kind, saved.with_overrides({})), model.state_dict(), "the model as it is")
    except (ValueError, TypeError) as error:
        raise ValueError(f"this model would not load again: {error}") from error
    return text + "\n"


def read_config(path: str | Path, kind: type[nn.Module]) -> SavedConfig:
    """Read and check the `config.json` of a model. Nothing that it names is imported, downloaded or opened.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, of another library, or has unknown keys or values of the wrong kind, which are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no saved model in {path.parent}: {CONFIG_NAME} is missing")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("library_name") != LIBRARY_NAME:
        raise ValueError(f"{path} is not a configuration of {LIBRARY_NAME}")
    try:
        return _checked(kind, path, config)
    except (ValueError, TypeError, RecursionError) as error:
        version = config.get("library_version")
        hint = "" if version == __version__ else f" (written by version {version}, this is {__version__})"
        raise ValueError(f"{path}: {error}{hint}") from error


def _checked(kind: type[nn.Module], path: Path, config: dict) -> SavedConfig:
    _check_keys("key", config, KEYS)
    model = config.get("model")
    if not isinstance(model, dict) or not {"backbone", "num_classes"} <= set(model):
        raise ValueError("it has no model with a backbone and num_classes")
    _check_keys("keyword", model, kind.config_keywords() - {"data_config"})
    _check_type("model.backbone", model["backbone"], str)
    for key in ("localizer", "classifier"):
        _check_type(f"model.{key}", model.get(key), str, dict, type(None))
    backbone_kwargs = model.get("backbone_kwargs")
    _check_type("model.backbone_kwargs", backbone_kwargs, dict, type(None))
    refused = sorted(set(backbone_kwargs or {}) & set(LOADING))
    if refused:
        raise ValueError(f"backbone_kwargs must not say where weights come from, got {', '.join(refused)}")
    if timm.is_model(model["backbone"]):
        check_size("backbone_kwargs", backbone_kwargs)
    data_config = config.get("data_config")
    _check_type("data_config", data_config, dict, type(None))
    names = config.get("class_names")
    _check_type("class_names", names, list, type(None))
    if names is not None and (len(names) != model["num_classes"] or not all(isinstance(n, str) for n in names)):
        raise ValueError(f"class_names must be {model['num_classes']} texts, one for each class")
    info = {key: config[key] for key in INFO if config.get(key) is not None}
    for key in ("license", "backbone_weights"):
        _check_type(key, info.get(key), str, type(None))
    _check_type("training_data", info.get("training_data"), str, list, type(None))
    if isinstance(info.get("training_data"), list):
        for name in info["training_data"]:
            _check_type("a name in training_data", name, str)
    _check_type("metrics", info.get("metrics"), dict, type(None))
    return SavedConfig(kind, path, _tuples(model), _tuples(data_config or {}), names, info)


def _check_keys(kind: str, found: dict, known: tuple[str, ...] | frozenset[str]) -> None:
    unknown = [key for key in found if key not in known]
    if unknown:
        others = f"; unknown as well: {', '.join(unknown[1:])}" if unknown[1:] else ""
        raise unknown_name(kind, unknown[0], known, hint=others)


def _check_type(name: str, value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be {wanted}, got {value!r}")


def figures_as_json(value: object) -> object:
    """Return figures as JSON values; a figure that is not finite (no image had a mask) becomes null."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {key: figures_as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [figures_as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    """Convert numbers and arrays of numpy and torch to JSON values."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} {value!r} can't be written to {CONFIG_NAME}")
    return value.tolist()


def _tuples(values: dict) -> dict:
    """Turn JSON's lists back into the tuples that were written."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
