"""Heads, which map backbone features to class scores and class activation maps; each is registered by name."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from minmax_entropy._registry import Registry

_HEADS = Registry("head")
register_head = _HEADS.register

from minmax_entropy.heads.attention import AttentionHead  # noqa: E402
from minmax_entropy.heads.pooling import AverageHead, ClassMapHead, LSEHead, MaxHead  # noqa: E402
from minmax_entropy.heads.wildcat import WildcatHead  # noqa: E402

BUILT_IN = {
    "wildcat": WildcatHead,
    "average": AverageHead,
    "max": MaxHead,
    "lse": LSEHead,
    "attention": AttentionHead,
}
for _name, _head in BUILT_IN.items():
    register_head(_head, name=_name)


def list_heads() -> list[str]:
    """Return the names of the registered heads."""
    return _HEADS.names()


def create_head(spec: str | dict | nn.Module, in_features: int, num_classes: int) -> nn.Module:
    """Build a head.

    Args:
        spec: a registered name, a dictionary of the head's options (with its `name`, "wildcat" if absent), or a
            module that maps `[B, D, h, w]` to `(scores [B, K], maps [B, K, h, w])`, which is returned unchanged.
        in_features: D.
        num_classes: K.

    Raises:
        ValueError: unknown name.
        TypeError: unknown option.
    """
    if isinstance(spec, nn.Module):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict):
        raise TypeError(f"a head is a name, a dictionary of options or a module, got {type(spec).__name__}")
    options = dict(spec)
    name = options.pop("name", "wildcat")
    factory = _HEADS[name]
    try:
        inspect.signature(factory).bind(in_features, num_classes, **options)
    except TypeError as error:
        known = list(inspect.signature(factory).parameters)[2:]
        raise TypeError(f"head {name!r}: {error}; its options are {known}") from None
    return factory(in_features, num_classes, **options)


def scores_and_maps(head: nn.Module, features: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute scores `[B, K]` and class maps `[B, K, h, w]` of a head, half precision raised to float32 for losses.

    Raises:
        ValueError: the head returns anything else.
    """
    result = head(features)
    shapes = [tuple(part.shape) for part in result] if isinstance(result, (tuple, list)) else tuple(result.shape)
    expected = (features.shape[0], num_classes)
    if len(shapes) != 2 or shapes[0] != expected or len(shapes[1]) != 4 or shapes[1][:2] != expected:
        raise ValueError(
            f"the head {type(head).__name__} must give scores {expected} and maps {(*expected, 'h', 'w')}, "
            f"it gave {shapes} for features {tuple(features.shape)}"
        )
    return tuple(part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in result)


__all__ = [
    "BUILT_IN",
    "AttentionHead",
    "AverageHead",
    "ClassMapHead",
    "LSEHead",
    "MaxHead",
    "WildcatHead",
    "create_head",
    "list_heads",
    "register_head",
    "scores_and_maps",
]
