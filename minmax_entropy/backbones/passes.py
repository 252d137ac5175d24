"""Computing a pass again in the backward, without counting it twice in BatchNorm's statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forward passes leave BatchNorm's running statistics alone, and give the same result.

    They update copies instead: without statistics, a layer would save fewer tensors than in the first pass, which
    activation checkpointing refuses.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    buffers = [(layer, name, buffer) for layer in layers for name, buffer in layer.named_buffers(recurse=False)]
    for layer, name, buffer in buffers:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in buffers:
            setattr(layer, name, buffer)
