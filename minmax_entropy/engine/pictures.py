"""Pictures: overlays of masks, and grids of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minmax_entropy.metrics.meter import THRESHOLD

TINT = (255, 60, 20)
TINT_STRENGTH = 0.35
OUTLINE = (255, 230, 0)
OUTSIDE_BRIGHTNESS = 0.65
GAP = 6


def overlay(image: Image.Image, mask: np.ndarray, threshold: float = THRESHOLD) -> Image.Image:
    """The image with the relevant region tinted and outlined, and the rest darkened.

    Args:
        image: RGB.
        mask: `[H, W]` in [0, 1], or bool, of the image's size.
        threshold: a pixel is relevant where the mask is at least this.
    """
    inside = mask.astype(np.float32) >= threshold
    pixels = np.asarray(image, dtype=np.float32)
    tinted = pixels * (1 - TINT_STRENGTH) + np.array(TINT, dtype=np.float32) * TINT_STRENGTH
    result = np.where(inside[..., None], tinted, pixels * OUTSIDE_BRIGHTNESS)
    result[_edge(inside)] = OUTLINE
    return Image.fromarray(result.clip(0, 255).astype(np.uint8))


def mask_picture(mask: np.ndarray, threshold: float | None = None) -> Image.Image:
    """A mask as greyscale; black and white where a threshold is given."""
    values = mask.astype(np.float32) if threshold is None else (mask >= threshold).astype(np.float32)
    return Image.fromarray((values * 255).round().astype(np.uint8))


def grid(
    rows: Sequence[Sequence[Image.Image]],
    headers: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    cell: int = 160,
) -> Image.Image:
    """Pictures in rows under headers, each with its longer side fitted to the cell, with a caption below.

    Args:
        rows: pictures, as many in each row as there are headers.
        headers: texts over the columns.
        captions: a short text for each picture, or none.
        cell: side of a cell in pixels.
    """
    font = ImageFont.load_default(size=max(10, cell // 13))
    line = max(14, cell // 10)
    fitted = [[_fit(picture.convert("RGB"), cell) for picture in pictures] for pictures in rows]
    heights = [max(picture.height for picture in pictures) + GAP + (line if captions else 0) for pictures in fitted]
    canvas = Image.new("RGB", (len(headers) * (cell + GAP) + GAP, sum(heights) + line + 2 * GAP), "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + column * (cell + GAP) for column in range(len(headers))]
    for left, text in zip(lefts, headers, strict=True):
        draw.text((left, GAP // 2), text, fill="black", font=font)
    top = line + GAP
    for index, pictures in enumerate(fitted):
        for column, (left, picture) in enumerate(zip(lefts, pictures, strict=True)):
            canvas.paste(picture, (left + (cell - picture.width) // 2, top))
            if captions:
                bottom = top + heights[index] - line - GAP
                draw.text((left, bottom), captions[index][column], fill="black", font=font)
        top += heights[index]
    return canvas


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a PNG under a temporary name, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    picture.save(temporary, format="PNG")
    temporary.replace(path)


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    ratio = cell / max(picture.size)
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    return picture.resize(size, Image.Resampling.NEAREST if ratio > 1.5 else Image.Resampling.BILINEAR)


def _edge(inside: np.ndarray) -> np.ndarray:
    """Foreground pixels with a background pixel beside them."""
    padded = np.pad(inside, 1, mode="edge")
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded
