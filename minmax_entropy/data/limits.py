"""Limit on the size of images: Pillow refuses those that would fill the memory; `max_pixels` allows more."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from PIL import Image

from minmax_entropy.data.images import DamagedFileError

# Pillow itself refuses images of more than twice its `MAX_IMAGE_PIXELS`.
DEFAULT_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)


@contextlib.contextmanager
def allow_pixels(max_pixels: int | None = None) -> Iterator[None]:
    """Allow images of up to `max_pixels` in this block, for the whole process; a small file may hold a huge image.

    Args:
        max_pixels: by default what Pillow allows, 178,956,970. An image takes four bytes per pixel while it is read,
            and as much again if it is converted.

    Raises:
        DamagedFileError: in the block, for an image with more pixels; the message says how to allow it.
        ValueError: `max_pixels` is below 1.
    """
    if max_pixels is not None and max_pixels < 1:
        raise ValueError(f"max_pixels must be 1 or more, got {max_pixels!r}")
    before = Image.MAX_IMAGE_PIXELS
    limit = DEFAULT_PIXELS if max_pixels is None else max_pixels
    Image.MAX_IMAGE_PIXELS = limit // 2 + limit % 2  # above half of the limit Pillow warns, above the limit it refuses
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except DamagedFileError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            raise
        reason = f"it has more than {limit:,} pixels; if it is to be trusted, allow more: max_pixels (--max-pixels)"
        raise DamagedFileError(error.path, reason) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before
