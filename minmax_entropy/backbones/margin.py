"""A reflected margin around the images of a pass, in place of zeros beyond the border."""

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
    """Reflected margin around the images, which is cropped from their features again. Our addition to the paper.

    Convolutions pad with zeros, so features along the border differ from all others, and a mask may settle there. The
    margin absorbs the features that padding changes most; in deep networks its effect reaches further, but is weaker.

    Args:
        backbone: module with `sizes` and `reduction` that computes the features. It gets no margin if it has no
            overlapping convolution and hence no padding (plain transformers), if it takes images of one size only, or
            if the margin does not fit the step of its sizes.
        share: share of the training steps in which images have the margin, in [0, 1].

    Attributes:
        pixels: width of the margin, the smallest multiple of the deepest stride and of `reduction` from 16 on; 0 for
            no margin.
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
        """Draw at random whether the images of a step get the margin (with torch's CPU generator)."""
        return self.pixels > 0 and self.share > 0 and (self.share == 1 or bool(torch.rand(()) < self.share))

    def extend(self, images: Tensor) -> Tensor:
        """Extend images `[B, C, H, W]` to `[B, C, H + 2 * pixels, W + 2 * pixels]`."""
        if self.pixels == 0:
            return images
        for axis in (-2, -1):
            images = images.index_select(axis, _reflected(images.shape[axis], self.pixels, images.device))
        return images

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Crop the margin from features `[B, D, h, w]` of extended images of this size."""
        if self.pixels == 0:
            return features
        positions = [math.ceil(side / self.reduction) for side in size]
        if any(abs(found - sought) > 1 for found, sought in zip(features.shape[-2:], positions, strict=True)):
            features = resize(features, positions)  # the network's grid does not depend on the image size
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
    """Return the source index of each place from `pixels` before the first to `pixels` after the last; any length."""
    places = torch.arange(-pixels, length + pixels, device=device) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)
