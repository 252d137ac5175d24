"""Models by name: `create_model`, `list_models` and the registry behind them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch.nn.modules.batchnorm import _BatchNorm

from minmax_entropy import hub
from minmax_entropy._registry import Registry, matching, unknown_name
from minmax_entropy.backbones import is_backbone, list_backbones
from minmax_entropy.hub.config import read_config
from minmax_entropy.hub.names import CONFIG_NAME
from minmax_entropy.wsl import WSLModel

_logger = logging.getLogger(__name__)

PREFIX = "wsl_"
DEFAULT_NUM_CLASSES = 1000
DEFAULT_IN_CHANS = 3

_MODELS = Registry("model")
register_model = _MODELS.register

# Model name or name.tag -> source with weights of the whole model. Only existing ones are registered.
_PRETRAINED: dict[str, str] = {}


def create_model(
    name: str,
    pretrained: bool | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    preset: str | None = None,
    checkpoint_path: str | Path | None = None,
    **kwargs,
) -> WSLModel:
    """Create a model for weakly supervised localization.

    Args:
        name: `wsl_<backbone>` with any timm name (tags included, `wsl_resnet50.a1_in1k`) or any name of
            `register_backbone`; or `local-dir:PATH`, a directory written by `save_pretrained`; or
            `hf-hub:ORG/NAME[@REVISION]`, such a directory on the Hugging Face Hub (branch, tag or commit).
        pretrained: for a name, load the weights of `register_pretrained`, or else the backbone's from timm's repository
            on the Hub, with fresh heads (False by default); for `local-dir:` and `hf-hub:`, load the model's weights
            (True by default). Cache, token and offline mode are those of `huggingface_hub`.
        num_classes: 1000 by default, or that of the saved model.
        in_chans: 3 by default, or that of the saved model.
        preset: a name in `minmax_entropy.presets.PRESETS`: "refined" by default, or the settings of the saved model.
        checkpoint_path: file with the weights of a whole model (`.safetensors`, or a state dict of `torch.save`). With
            another `num_classes` than the file's both heads start afresh, with another `in_chans` the first
            convolution; a line of the log says so.
        kwargs: keywords of `WSLModel`; all others go to the backbone's factory (`output_stride`, `drop_path_rate`).

    Returns:
        A `WSLModel`, in training mode like any new module.

    Raises:
        ValueError: unknown name or preset, a value out of range, or weights that can't be read or do not fit.
        TypeError: unknown keyword.
        FileNotFoundError, ConnectionError: the saved model does not exist or can't be reached; errors with a
            backbone's weights alone are those of timm and `huggingface_hub`.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"a model's name is a string, got {type(name).__name__}; for a module use WSLModel(backbone=...)"
        )
    given = {"num_classes": num_classes, "in_chans": in_chans, "preset": preset}
    kwargs.update({key: value for key, value in given.items() if value is not None})
    if name.startswith(hub.SOURCES):
        model = hub.load_model(WSLModel, name, weights=pretrained is not False, **kwargs)
    elif pretrained and name in _PRETRAINED:
        model = _registered(name, kwargs)
    else:
        model = model_entrypoint(name)(pretrained=bool(pretrained), **_with_tag(name, kwargs))
    if checkpoint_path is not None:
        hub.load_checkpoint(model, checkpoint_path, {key for key, value in given.items() if value is not None})
    return model


def list_models(
    filter: str | Sequence[str] = "", pretrained: bool = False, exclude_filters: str | Sequence[str] = ""
) -> list[str]:
    """Return the sorted names of the registered models. `wsl_<name>` works for every other timm name as well.

    Args:
        filter: shell-style patterns, any of which a name must match.
        pretrained: return the names and tags of `register_pretrained`, which have weights of the whole model.
        exclude_filters: patterns that no name may match.
    """
    return matching(_PRETRAINED if pretrained else _MODELS.names(), filter, exclude_filters)


def register_pretrained(
    name: str, hf_hub_id: str | None = None, *, revision: str | None = None, local_dir: str | Path | None = None
) -> None:
    """Register weights of a whole model: `create_model(name, pretrained=True)` loads them from then on.

    Args:
        name: name of a model, `wsl_resnet50`, or with a tag of your own, `wsl_resnet50.glas`.
        hf_hub_id: repository "ORG/NAME" on the Hugging Face Hub, as `WSLModel.push_to_hub` writes it.
        revision: its branch, tag or commit; with a commit the weights can't change.
        local_dir: a directory written by `save_pretrained`, instead.

    Raises:
        ValueError: unknown model, invalid name of a repository, or other weights registered for the name.
        FileNotFoundError: no saved model in the directory.
    """
    base = name.split(".")[0]
    if not is_model(base):
        model_entrypoint(base)  # raises, with the closest names
    if (hf_hub_id is None) == (local_dir is None):
        raise ValueError(f"weights of {name} are in a repository or in a directory: give hf_hub_id or local_dir")
    if hf_hub_id is not None:
        try:
            validate_repo_id(hf_hub_id)
        except HFValidationError as error:
            raise ValueError(f"{hf_hub_id!r} is not the name of a repository, ORG/NAME: {error}") from error
        source = f"{hub.HUB}{hf_hub_id}@{revision}" if revision else f"{hub.HUB}{hf_hub_id}"
    else:
        directory = Path(local_dir).expanduser().absolute()
        read_config(directory / CONFIG_NAME, WSLModel)
        source = f"{hub.LOCAL}{directory}"
    if _PRETRAINED.setdefault(name, source) != source:
        raise ValueError(f"{name} has weights already, at {_PRETRAINED[name]}; give these a tag, {base}.TAG")


def is_model(name: str) -> bool:
    """Return whether `create_model` knows the name: a registered one, or `wsl_` before the name of a backbone."""
    if not isinstance(name, str):
        return False
    base = name.split(".")[0]
    return base in _MODELS or (base.startswith(PREFIX) and is_backbone(base.removeprefix(PREFIX)))


def model_entrypoint(name: str) -> Callable[..., WSLModel]:
    """Return the factory function of a name; a tag after a dot is ignored.

    Raises:
        ValueError: unknown name, with the closest known ones.
    """
    base = name.split(".")[0]
    if base in _MODELS:
        return _MODELS[base]
    if is_model(base):
        backbone = base.removeprefix(PREFIX)

        def factory(pretrained: bool = False, **kwargs) -> WSLModel:
            return build_model(backbone, pretrained, **kwargs)

        factory.__name__ = factory.__qualname__ = base
        factory.__doc__ = f"Create a model with the backbone {backbone}; keywords are those of `create_model`."
        return factory
    known = {*_MODELS.names(), *(PREFIX + backbone for backbone in list_backbones())}
    prefixes = ", ".join(f"{prefix}..." for prefix in (hub.LOCAL, hub.HUB))
    raise unknown_name("model", name, known, hint=f" (a model is wsl_<timm name>, or {prefixes})")


def build_model(
    backbone: str, pretrained: bool = False, *, tag: str = "", kind: type[WSLModel] = WSLModel, **kwargs
) -> WSLModel:
    """Build a `WSLModel`, or its subclass `kind`, from flat keywords; unknown ones go to the backbone.

    Raises:
        TypeError: a keyword that neither the model nor the backbone knows.
    """
    known = inspect.signature(WSLModel.__init__).parameters
    options = {key: kwargs.pop(key) for key in list(kwargs) if key in known}
    backbone_kwargs = {**(options.pop("backbone_kwargs", None) or {}), **kwargs}
    name = f"{backbone}.{tag}" if tag else backbone
    try:
        model = kind(name, pretrained=pretrained, backbone_kwargs=backbone_kwargs, **options)
    except TypeError as error:
        unknown = [key for key in backbone_kwargs if f"'{key}'" in str(error)]
        if not unknown:
            raise
        raise TypeError(
            f"{unknown_name('keyword', unknown[0], known)}; neither WSLModel nor the backbone {name} takes it"
        ) from error
    if pretrained:
        frozen = model.freeze_bn and any(isinstance(layer, _BatchNorm) for layer in model.backbone.net.modules())
        kept = ", BatchNorm stays frozen (freeze_bn)" if frozen else ""
        _logger.info("%s: backbone weights of %s%s, heads start afresh", PREFIX + backbone, name, kept)
    return model


def _registered(name: str, kwargs: dict) -> WSLModel:
    """Load the weights of `register_pretrained`, which must have the architecture that they were registered for."""
    model = hub.load_model(WSLModel, _PRETRAINED[name], **kwargs)
    backbone = name.split(".")[0].removeprefix(PREFIX)
    found = str(model.config["backbone"]).split(".")[0]
    if is_backbone(backbone) and found != backbone:
        raise ValueError(f"{_PRETRAINED[name]} is registered for {name}, but it has the backbone {found}")
    return model


def _with_tag(name: str, kwargs: dict) -> dict:
    base, _, tag = name.partition(".")
    if not tag or name in _PRETRAINED:
        return kwargs
    backbone = base.removeprefix(PREFIX)
    if not timm.is_model(backbone):
        raise ValueError(f"{base} has no tags, got {tag!r}")
    if f"{backbone}.{tag}" not in timm.list_pretrained(f"{backbone}.*"):
        raise unknown_name("tag", tag, (known.split(".", 1)[1] for known in timm.list_pretrained(f"{backbone}.*")))
    return {**kwargs, "tag": tag}
