"""Reading of image and mask files, the same for every mode, with errors that name a damaged file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
MASK_THRESHOLD = 127
VOID = 255
_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class DamagedFileError(ValueError):
    """A file that can't be read as an image. `path` names it."""

    text = "{path} can't be read as an image: {reason}"

    def __init__(self, path: str | Path, reason: object) -> None:
        super().__init__(self.text.format(path=path, reason=reason))
        self.path = str(path)
        self.reason = str(reason)

    def __reduce__(self) -> tuple:  # crosses from a loader process to the main one
        return type(self), (self.path, self.reason)


class MaskSizeError(DamagedFileError):
    """A mask whose size differs from that of its image. `path` names the image."""

    text = "the mask of {path} is {reason}"


class BoxError(DamagedFileError):
    """A box that does not lie in its image. `path` names the image."""

    text = "a box of {path} is {reason}"


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright.

    EXIF orientation is applied; transparent pixels are put on white; palettes, greyscale and CMYK are converted; of an
    animation, the first frame is read. Greyscale of more than 8 bits is scaled from 255, 65535 or its maximum, the
    first that it fits in (floating point also from 1): scale 12-bit data to 16 bits beforehand.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: the file is truncated, damaged, or not an image.
    """
    return _as_rgb(_open(path))


def as_image(picture: str | Path | Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Convert a picture to RGB: a file, a PIL image, an array or a tensor.

    Args:
        picture: an array `[H, W]` or `[H, W, 3]` of bytes; a tensor `[1, H, W]` or `[3, H, W]` of bytes, or of floating
            point in [0, 1].

    Raises:
        FileNotFoundError, DamagedFileError: as `read_image`.
        TypeError, ValueError: any other type, shape or values.
    """
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return decode_image(picture, "the image")
    if not isinstance(picture, (np.ndarray, Tensor)):
        raise TypeError(f"a picture is a file, a PIL image, an array or a tensor, got {type(picture).__name__}")
    pixels = picture
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] not in (1, 3):
            raise ValueError(f"a picture's tensor is [1, H, W] or [3, H, W], got {list(picture.shape)}")
        values = picture.detach().cpu()
        if values.is_floating_point():
            if not 0 <= float(values.min()) <= float(values.max()) <= 1:
                raise ValueError("a picture's tensor of floating point has values in [0, 1], before any normalization")
            values = (values.float() * 255).round().to(torch.uint8)
        pixels = (
            values.permute(1, 2, 0).numpy().squeeze(-1) if picture.shape[0] == 1 else values.permute(1, 2, 0).numpy()
        )
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"a picture's array is uint8 [H, W] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def decode_image(data: bytes | Image.Image, name: str) -> Image.Image:
    """Read an image like `read_image`, from a file's content or an open image; `name` replaces the path in errors."""
    return _as_rgb(_load(io.BytesIO(data) if isinstance(data, bytes) else data, name))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask file as bool `[H, W]`: foreground where the value is over 127, or over 0 if no value is over 127.

    For a palette image, the indices count: all are foreground but 0 (background) and, beside other indices, 255 (void,
    as in PASCAL VOC).

    Args:
        path: a greyscale, palette or colour image (the brightest channel counts, transparency does not).

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: the file is truncated, damaged, or not an image.
    """
    return _as_mask(_open(path))


def decode_mask(data: bytes | Image.Image, name: str) -> np.ndarray:
    """Read a mask like `read_mask`, from a file's content or an open image; `name` replaces the path in errors."""
    return _as_mask(_load(io.BytesIO(data) if isinstance(data, bytes) else data, name))


def read_values(path: str | Path) -> np.ndarray:
    """Read the unchanged values of a mask file, `[H, W]`: greys, palette indices, or the brightest colour channel.

    Transparency is ignored. Raises like `read_mask`.
    """
    return _values(_open(path))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height in pixels of an image file, upright, without decoding it. Raises like `read_image`."""
    path = _existing(path)
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.size[::-1] if orientation in range(5, 9) else image.size
    except Exception as error:
        raise DamagedFileError(path, error) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES:
        image = Image.fromarray(_to_bytes(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _as_mask(image: Image.Image) -> np.ndarray:
    values = _values(image)
    if image.mode == "P":
        objects = (values != 0) & (values != VOID)
        return objects if objects.any() else values != 0
    return values > (MASK_THRESHOLD if values.max(initial=0) > MASK_THRESHOLD else 0)


def _values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "CMYK", "YCbCr") else image)
    return values.max(axis=2) if values.ndim == 3 else values


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return path


def _open(path: str | Path) -> Image.Image:
    path = _existing(path)
    return _load(path, path)


def _load(file: Path | BinaryIO | Image.Image, name: str | Path) -> Image.Image:
    """Return the loaded image, upright; EXIF data that can't be read is ignored."""
    try:
        image = file if isinstance(file, Image.Image) else Image.open(file)
        image.load()
    except UnidentifiedImageError:
        raise DamagedFileError(name, "not an image, or of an unknown format") from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors
        raise DamagedFileError(name, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises many kinds, too
        return image


def _to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Scale greyscale of more than 8 bits to 0..255."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    top = float(values.max(initial=0))
    scales = (255.0, 65535.0) if mode.startswith("I") else (1.0, 255.0, 65535.0)
    full = next((scale for scale in scales if top <= scale), top)
    return (values.clip(0, full) * (255 / full)).round().astype(np.uint8)
