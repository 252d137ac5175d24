"""Heads: backbone features to class scores and class activation maps. Each is registered by name."""

from __future__ import annotations

import inspect

from torch import nn

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
    """Names of the registered heads."""
    return _HEADS.names()


def create_head(spec: str | dict | nn.Module, in_features: int, num_classes: int) -> nn.Module:
    """Build a head.

    Args:
        spec: a registered name, a dictionary of the head's options (with its `name`, "wildcat" if absent), or a
            module that maps `[B, D, h, w]` to `(scores [B, K], maps [B, K, h, w])`, which is returned as it is.
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
]
