"""Backbones, which map images `[B, C, H, W]` to features `[B, D, h, w]`: by timm name, registered name or module."""

from __future__ import annotations

import inspect

import timm
from torch import nn

from minmax_entropy._registry import Registry, unknown_name
from minmax_entropy.backbones.module import ModuleBackbone
from minmax_entropy.backbones.sizes import as_pair
from minmax_entropy.backbones.timm_backbone import TimmBackbone

_BACKBONES = Registry("backbone")
register_backbone = _BACKBONES.register


def list_backbones(filter: str = "", exclude_filters: str = "") -> list[str]:
    """Return the names that `create_backbone` knows: those registered with `register_backbone`, then timm's."""
    return _BACKBONES.names(filter, exclude_filters) + timm.list_models(filter, exclude_filters=exclude_filters)


def is_backbone(name: str) -> bool:
    """Return whether `create_backbone` knows the name; a timm tag after a dot is ignored."""
    return name in _BACKBONES or timm.is_model(name)


def create_backbone(
    backbone: str | nn.Module,
    pretrained: bool = False,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    **kwargs,
) -> nn.Module:
    """Build a backbone.

    Args:
        backbone: a name of `list_backbones()` (timm's with or without a tag), a timm model, or a module that maps
            `[B, in_chans, H, W]` to `[B, D, h, w]`.
        pretrained: load the backbone's weights; for timm names from timm's repository on the Hugging Face Hub.
        in_chans: channels of the images.
        img_size: image size the architecture is built for, where it needs one; it becomes `data_config`'s input size.
        kwargs: `out_index` and `neck` of `TimmBackbone`; all others are passed to the backbone's factory.

    Returns:
        A module with `net` (the wrapped network), `num_features` (D), `reduction` (stride of the features in pixels),
        `feature_info`, `data_config` (mean, std, input size, interpolation, crop) and `sizes` (the image sizes it
        accepts).

    Raises:
        ValueError: unknown name, or a module that does not return a feature map.
        TypeError: a keyword that the backbone does not accept, or a backbone that is neither a name nor a module.
    """
    if isinstance(backbone, nn.Module):
        return _wrap(backbone, in_chans, img_size, kwargs)
    if not isinstance(backbone, str):
        given = backbone.__name__ + " itself" if isinstance(backbone, type) else type(backbone).__name__
        raise TypeError(f"a backbone is a name or a module (an instance of nn.Module), got {given}")
    if backbone in _BACKBONES:
        factory = _BACKBONES[backbone]
        known = inspect.signature(factory).parameters
        size = {"img_size": img_size} if "img_size" in known else {}
        own = {key: kwargs.pop(key) for key in ("out_index", "neck") if key in kwargs and key not in known}
        return _wrap(factory(pretrained=pretrained, in_chans=in_chans, **size, **kwargs), in_chans, img_size, own)
    if not timm.is_model(backbone):
        raise unknown_name("backbone", backbone, _BACKBONES.names() + timm.list_models())
    return TimmBackbone(backbone, pretrained=pretrained, in_chans=in_chans, img_size=img_size, **kwargs)


def _wrap(module: nn.Module, in_chans: int, img_size: int | tuple[int, int] | None, options: dict) -> nn.Module:
    """Wrap a module in the interface of a backbone; `options` are keywords of `TimmBackbone`, for timm models only."""
    if isinstance(module, (TimmBackbone, ModuleBackbone)):
        wrapped = module
        own = tuple(wrapped.data_config["input_size"])
        asked = (in_chans, *as_pair(img_size or own[1:]))
        if asked != own:
            raise ValueError(f"the backbone was created for input {own} (channels, height, width), not for {asked}")
    elif hasattr(module, "forward_intermediates") and hasattr(module, "feature_info"):
        return TimmBackbone(module, in_chans=in_chans, img_size=img_size, **options)
    else:
        wrapped = ModuleBackbone(module, in_chans, img_size)
    if options:
        raise TypeError(f"the backbone {type(module).__name__} takes no keywords, got {sorted(options)}")
    return wrapped


__all__ = ["ModuleBackbone", "TimmBackbone", "create_backbone", "is_backbone", "list_backbones", "register_backbone"]
