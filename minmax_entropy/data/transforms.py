"""Augmentations of training images, by name, for image and mask together (torchvision's transforms v2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from minmax_entropy._registry import unknown_name
from minmax_entropy.backbones.sizes import as_pair
from minmax_entropy.data.preprocess import MAX_ASPECT, resampling

# The paper's crops of 480 pixels are cut from images whose smaller side is 500.
PAPER_CROP, PAPER_SIDE = 480, 500


def _paper_crop(size: tuple[int, int], how: Image.Resampling, padding: int | None = None) -> list[nn.Module]:
    side = round(max(size) * PAPER_SIDE / PAPER_CROP)
    return [
        v2.Resize(side, interpolation=how, max_size=MAX_ASPECT * side, antialias=True),
        v2.RandomCrop(size, padding=padding, pad_if_needed=True, padding_mode="reflect"),
    ]


def _paper(size: tuple[int, int], how: Image.Resampling) -> list[nn.Module]:
    """Resize the smaller side to 500, crop 480 at random (or the same shares of another size), flip horizontally."""
    return [*_paper_crop(size, how), v2.RandomHorizontalFlip()]


def _glas(size: tuple[int, int], how: Image.Resampling) -> list[nn.Module]:
    """Augment like "paper", for tissue: with reflected borders, both flips and colour jitter."""
    return [
        *_paper_crop(size, how, padding=max(size) // 16),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.05),
    ]


def _crop(size: tuple[int, int], how: Image.Resampling) -> list[nn.Module]:
    """Crop 40 to 100 % of the image at random (aspect ratio 3:4 to 4:3), flip horizontally, jitter colours slightly."""
    return [
        v2.RandomResizedCrop(size, scale=(0.4, 1.0), interpolation=how, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]


def _flip(size: tuple[int, int], how: Image.Resampling) -> list[nn.Module]:
    """Resize the whole image, flip horizontally."""
    return [v2.Resize(size, interpolation=how, antialias=True), v2.RandomHorizontalFlip()]


def _none(size: tuple[int, int], how: Image.Resampling) -> list[nn.Module]:
    """Resize the whole image."""
    return [v2.Resize(size, interpolation=how, antialias=True)]


AUGMENTATIONS: dict[str, Callable[[tuple[int, int], Image.Resampling], list[nn.Module]]] = {
    "crop": _crop,
    "paper": _paper,
    "glas": _glas,
    "flip": _flip,
    "none": _none,
}


class _Mask(tv_tensors.Mask):
    """Mask that is padded like Pillow's images: torch reflects no further than the mask is wide (strips)."""


@v2.functional.register_kernel(v2.functional.pad, _Mask)
def _pad_mask(
    mask: Tensor, padding: int | Sequence[int], fill: float | None = None, padding_mode: str = "constant"
) -> Tensor:
    padding = [padding] if isinstance(padding, int) else list(padding)
    left, top, right, bottom = (padding * 4)[:4]
    values = {"constant_values": fill or 0} if padding_mode == "constant" else {}
    padded = np.pad(mask.numpy(), ((0, 0), (top, bottom), (left, right)), mode=padding_mode, **values)
    return tv_tensors.wrap(torch.from_numpy(padded), like=mask)


class TrainingTransform:
    """Augmentation and normalization of a training image, together with its mask.

    Args:
        augmentation: "crop" (a random part of the image), "paper" (smaller side to 500, crop of 480, flips;
            arXiv 1907.12934), "glas" (the paper's for GlaS: with reflect padding and colour jitter as well), "flip",
            "none"; or a module of torchvision's transforms v2 that returns images of `size`.
        size: `(height, width)` of the result in pixels, or a number.
        mean, std: from the backbone's `data_config`, for pixels in [0, 1]; one of each makes the image greyscale.
        interpolation: from the backbone's `data_config`, for the image; masks take the nearest pixel.

    Raises:
        ValueError: an unknown augmentation or interpolation, or a number of means other than 3 or 1.
    """

    def __init__(
        self,
        augmentation: str | nn.Module,
        size: int | tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
    ) -> None:
        if isinstance(augmentation, str) and augmentation not in AUGMENTATIONS:
            raise unknown_name("augmentation", augmentation, AUGMENTATIONS)
        if len(mean) not in (1, 3):
            raise ValueError(f"an image gives 3 channels or 1, the model takes {len(mean)}")
        self.size, how = as_pair(size), resampling(interpolation)
        steps = AUGMENTATIONS[augmentation](self.size, how) if isinstance(augmentation, str) else [augmentation]
        self._geometry = v2.Compose(steps)
        channels = [v2.Grayscale()] if len(mean) == 1 else []
        scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        self._values = v2.Compose([*channels, *scale])

    def __call__(self, image: Image.Image, mask: np.ndarray | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Transform an RGB image to float32 `[C, H, W]`, and a mask, if given, from bool `[h, w]` to bool `[H, W]`."""
        if mask is None:
            return self._values(self._geometry(image)).as_subclass(Tensor)
        image, moved = self._geometry(image, _Mask(torch.from_numpy(mask)[None].to(torch.uint8)))
        return self._values(image).as_subclass(Tensor), moved[0].as_subclass(Tensor).bool()
