"""A single pass through a backbone, with optional recomputation in the backward and updates of BatchNorm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def features_of(backbone: nn.Module, images: Tensor, *, counts: bool = True, again: bool = False) -> Tensor:
    """Compute the features `[B, D, h, w]` of images `[B, C, H, W]`.

    Args:
        backbone: the module.
        images: its input.
        counts: whether the pass updates BatchNorm's running statistics, in training.
        again: keep no activations for the backward pass, and compute them again there.

    Raises:
        ValueError: BatchNorm can't be trained on a single position.
    """

    def statistics() -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if counts else frozen_statistics(backbone)

    try:
        if again and torch.is_grad_enabled():
            contexts = lambda: (statistics(), frozen_statistics(backbone))  # noqa: E731
            return checkpoint(backbone, images, use_reentrant=False, context_fn=contexts)
        with statistics():
            return backbone(images)
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"BatchNorm can't train on a batch of one whose feature map is a single position (images of "
            f"{images.shape[2]} x {images.shape[3]}): use larger images, a larger batch, or put the BatchNorm "
            "layers in eval mode"
        ) from error


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep forward passes in this block from updating BatchNorm's running statistics; their results stay the same.

    The passes update copies instead: without statistics, a layer would save fewer tensors than in the first pass, which
    activation checkpointing rejects.
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
