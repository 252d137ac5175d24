"""Image and mask files, read the same way whatever their mode, and with an error that names a damaged file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
MASK_THRESHOLD = 127
_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class DamagedFileError(ValueError):
    """A file that can't be read as an image. `path` names it."""

    def __init__(self, path: str | Path, reason: object) -> None:
        super().__init__(f"{path} can't be read as an image: {reason}")
        self.path = str(path)
        self.reason = str(reason)

    def __reduce__(self) -> tuple:  # crosses from a loader process to the main one
        return type(self), (self.path, self.reason)


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, upright.

    EXIF orientation is applied; transparent pixels are laid on white; 16-bit and floating-point greyscale is scaled to
    8 bits; palettes, greyscale and CMYK are converted; of an animation the first frame is taken.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: the file is truncated, damaged, or not an image.
    """
    image = _open(path)
    if image.mode in _WIDE_MODES:
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as booleans `[H, W]`: foreground where the value is over 127, or over 0 if no value is.

    Args:
        path: a greyscale, palette (the indices count) or colour image (the brightest channel counts).

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: the file is truncated, damaged, or not an image.
    """
    image = _open(path)
    values = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "CMYK", "YCbCr") else image)
    if values.ndim == 3:
        values = values.max(axis=2)
    return values > (MASK_THRESHOLD if values.max(initial=0) > MASK_THRESHOLD else 0)


def _open(path: str | Path) -> Image.Image:
    """The loaded image, upright; EXIF data that can't be read is passed over."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        image = Image.open(path)
        image.load()
    except UnidentifiedImageError:
        raise DamagedFileError(path, "not an image, or of an unknown format") from None
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DamagedFileError(path, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises many kinds, too
        return image


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Greyscale of more than 8 bits, scaled to 0..255: by 65535 where the values need 16 bits, else by their range."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    top = float(values.max(initial=0))
    full = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0 if top <= 65535 else top
    return (values.clip(0, full) * (255 / full)).round().astype(np.uint8)
