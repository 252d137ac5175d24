"""A margin around the images of a pass: what lies beyond the border is their reflection, not zeros."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minmax_entropy._checks import check_share
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.mask import resize
from minmax_entropy.settings import setting

SMALLEST = 16  # pixels


class ReflectedMargin(nn.Module):
    """Images within a margin of their own reflection, which is cut off their features again. Ours, beyond the paper.

    Convolutions pad with zeros, so that the features along the border are unlike those of any other place, and a mask
    may settle there. The margin takes the features that padding changes most; those of deep networks feel it further
    in, and less.

    Args:
        backbone: the module with `sizes` and `reduction` whose features they are. It sees images as they are where it
            has no convolution that overlaps, as a plain transformer, and so pads nothing; and where it takes images of
            one size, or multiples of a step that the margin breaks.
        share: of the training steps, in which the images have it, in [0, 1].

    Attributes:
        pixels: width of the margin, 16 or the next whole multiple of the deepest stride and of a position of the
            features; 0 for none.
    """

    share = setting("share", check_share, "reflect_margin")

    def __init__(self, backbone: nn.Module, share: float = 1.0) -> None:
        super().__init__()
        self.share = share
        sizes: ImageSizes = backbone.sizes
        self.reduction = round(backbone.reduction)
        unit = math.lcm(sizes.stride, self.reduction)
        pixels = math.ceil(SMALLEST / unit) * unit
        fits = sizes.fixed is None and all(2 * pixels % step == 0 for step in sizes.step)
        self.pixels = pixels if fits and _overlaps(backbone) else 0

    def drawn(self) -> bool:
        """Whether the images of a step have it, by lot (torch's generator of the CPU)."""
        return self.pixels > 0 and self.share > 0 and (self.share == 1 or bool(torch.rand(()) < self.share))

    def extend(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, H + 2 * pixels, W + 2 * pixels]`."""
        if self.pixels == 0:
            return images
        for axis in (-2, -1):
            images = images.index_select(axis, _reflected(images.shape[axis], self.pixels, images.device))
        return images

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The features `[B, D, h, w]` of the images alone, from those of `extend`, which has made them of this size."""
        if self.pixels == 0:
            return features
        positions = [math.ceil(side / self.reduction) for side in size]
        if any(abs(found - sought) > 1 for found, sought in zip(features.shape[-2:], positions, strict=True)):
            features = resize(features, positions)  # the network has a grid of its own, whatever the image
        cells = self.pixels // self.reduction
        return features[..., cells:-cells, cells:-cells]

    def extra_repr(self) -> str:
        return f"pixels={self.pixels}, share={self.share:g}"


def _overlaps(backbone: nn.Module) -> bool:
    convolutions = (module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    return any(
        side > step for module in convolutions for side, step in zip(module.kernel_size, module.stride, strict=True)
    )


def _reflected(length: int, pixels: int, device: torch.device) -> Tensor:
    """Places of what is seen, from `pixels` before the first to `pixels` after the last; any length."""
    places = torch.arange(-pixels, length + pixels, device=device) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)
