"""Preprocessing of images of any size for the network, and restoring of its masks to the image's own size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from minmax_entropy._checks import check_choice
from minmax_entropy.backbones.data_config import INTERPOLATIONS
from minmax_entropy.mask import resize

PAD_MULTIPLE = 32
# Long sides are limited to this many times the short side to be reached, so that a strip does not become a huge image.
MAX_ASPECT = 8
NATIVE = "native"


def scaled_size(height: int, width: int, short_side: int | None, reference: bool = False) -> tuple[int, int]:
    """Return the size at which the network sees an image, with its aspect ratio kept.

    Args:
        height, width: size of the image in pixels.
        short_side: target length of the shorter side (less for strips longer than eight times that); None keeps the
            size of the image.
        reference: scale as the authors' implementation does: only images that are smaller, and with truncated sizes
            (so the shorter side may miss its target by one pixel).
    """
    if short_side is None or (reference and min(height, width) >= short_side):
        return height, width
    ratio = short_side / min(height, width)
    if reference:
        return int(height * ratio), int(width * ratio)
    ratio = min(ratio, MAX_ASPECT * short_side / max(height, width))
    return max(round(height * ratio), 1), max(round(width * ratio), 1)


def padding(size: int, multiple: int = PAD_MULTIPLE) -> tuple[int, int]:
    """Return the pixels to add before and after, so that `size` becomes a whole multiple of `multiple`."""
    extra = -size % multiple
    return extra // 2, extra - extra // 2


def resampling(interpolation: str) -> Image.Resampling:
    """Return Pillow's filter for the `interpolation` of a `data_config`; "random" is bilinear.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    return Image.Resampling["BILINEAR" if interpolation == "random" else interpolation.upper()]


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing for evaluation: scale, reflect-pad to a multiple, normalize; masks are mapped back by `restore`.

    Args:
        mean, std: from the backbone's `data_config`, for pixels in [0, 1].
        short_side: see `scaled_size`.
        multiple: sides become multiples of this.
        fixed_size: `(height, width)` to resize to exactly, for architectures that take one size.
        reference: scale and crop as in the authors' implementation; the crop is off by a pixel for odd sizes.
        interpolation: from the backbone's `data_config`; see `resampling`. Masks are restored bilinearly.

    Raises:
        ValueError: an unknown interpolation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int | None = None
    multiple: int = PAD_MULTIPLE
    fixed_size: tuple[int, int] | None = None
    reference: bool = False
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        resampling(self.interpolation)

    def resized(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Return the image at another size, unchanged if it already has it."""
        if (height, width) == (image.height, image.width):
            return image
        return image.resize((width, height), resampling(self.interpolation))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return the scaled and padded image, uint8 `[H, W]` or `[H, W, 3]`; float32 if its mode is "F"."""
        height, width = self._scaled(image.height, image.width)
        values = np.asarray(self.resized(image, height, width))
        if self.fixed_size is None:
            pads = [padding(height, self.multiple), padding(width, self.multiple)]
            values = np.pad(values, pads + [(0, 0)] * (values.ndim - 2), mode="reflect")
        return values

    def __call__(self, image: Image.Image) -> Tensor:
        """Return an image as the network's input, float32 `[C, H, W]`; C is the number of means, 3 or 1 (greyscale)."""
        if len(self.mean) not in (1, 3):
            raise ValueError(f"an image gives 3 channels or 1, the model takes {len(self.mean)}")
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        values = torch.from_numpy(self.pixels(image).astype(np.float32) / 255)
        values = values.reshape(*values.shape[:2], -1).permute(2, 0, 1)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return (values - mean) / std

    def restore(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """Crop off the padding and resize to the image's own `(height, width)`: `[1, H, W]` to `[1, height, width]`."""
        if self.fixed_size is None:
            rows, columns = (
                self._crop(inner, outer) for inner, outer in zip(self._scaled(*size), mask.shape[-2:], strict=True)
            )
            mask = mask[:, rows, columns]
        return resize(mask.unsqueeze(0), size).squeeze(0)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        return self.fixed_size or scaled_size(height, width, self.short_side, self.reference)

    def _crop(self, inner: int, outer: int) -> slice:
        start = outer // 2 - inner // 2 if self.reference else padding(inner, self.multiple)[0]
        return slice(start, start + inner)


def preprocess_for(model: nn.Module, short_side: int | str | None = None) -> Preprocess:
    """Return the evaluation preprocessing that a model expects.

    Mean, std and interpolation come from the model's `data_config`. Its `crop_pct` is not used: the mask must cover
    the whole image, which is never cropped.

    Args:
        model: a model with a `data_config` and a `backbone` that has `sizes`.
        short_side: shorter side of the images as the network sees them, or "native" for their own; by default that of
            `data_config`'s `input_size`. A model built for one size sees whole images at that size. If `data_config`
            has `resize="reference"`, only smaller images are scaled, and with "reference_native" none, as in the
            authors' implementation, whose interpolation is bilinear.

    Raises:
        ValueError: a string other than "native".
    """
    if isinstance(short_side, str) and short_side != NATIVE:
        raise ValueError(f"short_side is a number of pixels or {NATIVE!r}, got {short_side!r}")
    config = model.data_config
    resize = config.get("resize", "short_side")
    if short_side is None and resize != "reference_native":
        short_side = min(config["input_size"][-2:])
    return Preprocess(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        short_side=None if short_side == NATIVE else short_side,
        multiple=model.backbone.sizes.multiple,
        fixed_size=model.backbone.sizes.fixed,
        reference=resize != "short_side",
        interpolation=config["interpolation"] if resize == "short_side" else "bilinear",
    )
