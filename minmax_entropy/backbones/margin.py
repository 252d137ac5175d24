"""A margin around the images of a pass: what lies beyond the border is their reflection, not zeros."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minmax_entropy.backbones.sizes import ImageSizes

SMALLEST = 16  # pixels


class ReflectedMargin(nn.Module):
    """Images within a margin of their own reflection, which is cut off their features again. Ours, beyond the paper.

    Convolutions pad with zeros, so that the features along the border are unlike those of any other place, and a mask
    may settle there. With a margin, what is cut off are those features.

    Args:
        backbone: the module with `sizes` and `reduction` whose features they are. It sees images as they are where it
            has no convolution that overlaps, as a plain transformer, and so pads nothing; and where it takes images of
            one size, or multiples of a step that the margin breaks.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        sizes: ImageSizes = backbone.sizes
        unit = math.lcm(sizes.stride, backbone.reduction)
        pixels = math.ceil(SMALLEST / unit) * unit
        fits = sizes.fixed is None and all(2 * pixels % step == 0 for step in sizes.step)
        self.pixels = pixels if fits and _overlaps(backbone) else 0
        self.cells = self.pixels // backbone.reduction

    def extend(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, H + 2 * pixels, W + 2 * pixels]`."""
        if self.pixels == 0:
            return images
        for axis in (-2, -1):
            images = images.index_select(axis, _reflected(images.shape[axis], self.pixels, images.device))
        return images

    def forward(self, features: Tensor) -> Tensor:
        """The features `[B, D, h, w]` of the images alone, from those of `extend`."""
        cells = self.cells
        return features if cells == 0 else features[..., cells:-cells, cells:-cells]

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}"


def _overlaps(backbone: nn.Module) -> bool:
    convolutions = (module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    return any(
        side > step for module in convolutions for side, step in zip(module.kernel_size, module.stride, strict=True)
    )


def _reflected(length: int, pixels: int, device: torch.device) -> Tensor:
    """Places of what is seen, from `pixels` before the first to `pixels` after the last; any length."""
    places = torch.arange(-pixels, length + pixels, device=device) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)
