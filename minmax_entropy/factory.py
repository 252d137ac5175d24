"""Models by name: `create_model`, `list_models` and the registry behind them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import timm

from minmax_entropy import hub
from minmax_entropy.backbones import is_backbone, list_backbones
from minmax_entropy.model import WSLModel
from minmax_entropy.registry import Registry, unknown_name

_logger = logging.getLogger(__name__)

PREFIX = "wsl_"
DEFAULT_NUM_CLASSES = 1000
DEFAULT_IN_CHANS = 3

_MODELS = Registry("model")
register_model = _MODELS.register


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
            `hf-hub:ORG/NAME[@REVISION]`, such a directory on the Hugging Face Hub.
        pretrained: for a name, load the weights registered for it, or else the backbone's from timm's repository on the
            Hub, with fresh heads (False by default); for `local-dir:` and `hf-hub:`, load the model's weights (True by
            default).
        num_classes: 1000 by default, or that of the saved model.
        in_chans: 3 by default, or that of the saved model.
        preset: a name of `minmax_entropy.presets.PRESETS`.
        checkpoint_path: file with the weights of a whole model (`.safetensors`, or a state dict of `torch.save`).
        kwargs: keywords of `WSLModel`; all others go to the backbone's factory (`output_stride`, `drop_path_rate`).

    Returns:
        `WSLModel`, in training mode as any new module.

    Raises:
        ValueError: unknown name or preset, or a value out of range.
        TypeError: unknown keyword.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"a model's name is a string, got {type(name).__name__}; for a module use WSLModel(backbone=...)"
        )
    given = {"num_classes": num_classes, "in_chans": in_chans, "preset": preset}
    kwargs.update({key: value for key, value in given.items() if value is not None})
    if pretrained and name in hub.PRETRAINED:
        name = hub.PRETRAINED[name]
    if name.startswith(hub.SOURCES):
        model = hub.load_model(name, weights=pretrained is not False, **kwargs)
    else:
        model = model_entrypoint(name)(pretrained=bool(pretrained), **_with_tag(name, kwargs))
    if checkpoint_path is not None:
        hub.load_checkpoint(model, checkpoint_path)
    return model


def list_models(
    filter: str | Sequence[str] = "", pretrained: bool = False, exclude_filters: str | Sequence[str] = ""
) -> list[str]:
    """Sorted names of the registered models. `wsl_<name>` works for every other timm name as well.

    Args:
        filter: shell-style patterns, any of which a name must match.
        pretrained: only models with registered weights of the whole model.
        exclude_filters: patterns that no name may match.
    """
    names = _MODELS.names(filter, exclude_filters)
    return [name for name in names if name in hub.PRETRAINED] if pretrained else names


def is_model(name: str) -> bool:
    """Whether `create_model` knows the name: registered, or `wsl_` before a name that is a backbone."""
    if not isinstance(name, str):
        return False
    base = name.split(".")[0]
    return base in _MODELS or (base.startswith(PREFIX) and is_backbone(base.removeprefix(PREFIX)))


def model_entrypoint(name: str) -> Callable[..., WSLModel]:
    """The factory function of a name; a tag after a dot is not looked at.

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
        factory.__doc__ = f"Weakly supervised localization with the backbone {backbone}; keywords of `create_model`."
        return factory
    known = {*_MODELS.names(), *(PREFIX + backbone for backbone in list_backbones())}
    prefixes = ", ".join(f"{prefix}..." for prefix in hub.SOURCES)
    raise unknown_name("model", name, known, hint=f" (a model is wsl_<timm name>, or {prefixes})")


def build_model(backbone: str, pretrained: bool = False, *, tag: str = "", **kwargs) -> WSLModel:
    """A `WSLModel` from flat keywords: those it does not know itself are the backbone's.

    Raises:
        TypeError: a keyword that neither the model nor the backbone knows.
    """
    known = inspect.signature(WSLModel.__init__).parameters
    options = {key: kwargs.pop(key) for key in list(kwargs) if key in known}
    backbone_kwargs = {**(options.pop("backbone_kwargs", None) or {}), **kwargs}
    name = f"{backbone}.{tag}" if tag else backbone
    try:
        model = WSLModel(name, pretrained=pretrained, backbone_kwargs=backbone_kwargs, **options)
    except TypeError as error:
        unknown = [key for key in backbone_kwargs if f"'{key}'" in str(error)]
        if not unknown:
            raise
        raise TypeError(
            f"{unknown_name('keyword', unknown[0], known)}; neither WSLModel nor the backbone {name} takes it"
        ) from error
    if pretrained:
        _logger.info("%s: backbone weights of %s, heads start afresh", PREFIX + backbone, name)
    return model


def _with_tag(name: str, kwargs: dict) -> dict:
    base, _, tag = name.partition(".")
    if not tag:
        return kwargs
    backbone = base.removeprefix(PREFIX)
    if not timm.is_model(backbone):
        raise ValueError(f"{base} has no tags, got {tag!r}")
    if f"{backbone}.{tag}" not in timm.list_pretrained(f"{backbone}.*"):
        raise unknown_name("tag", tag, (known.split(".", 1)[1] for known in timm.list_pretrained(f"{backbone}.*")))
    return {**kwargs, "tag": tag}
