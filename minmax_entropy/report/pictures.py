"""Pictures: overlays of masks, and grids of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minmax_entropy._bands import BAND_PIXELS, row_bands
from minmax_entropy._files import written_whole
from minmax_entropy.metrics.meter import THRESHOLD

TINT = (255, 60, 20)
TINT_STRENGTH = 0.35
OUTLINE = (255, 230, 0)
OUTSIDE_BRIGHTNESS = 0.65
GAP = 6


def overlay(image: Image.Image, mask: np.ndarray, threshold: float = THRESHOLD) -> Image.Image:
    """Return the image with the relevant region tinted and outlined, and the rest darkened.

    Args:
        image: RGB.
        mask: `[H, W]` in [0, 1], or bool, of the image's size.
        threshold: a pixel is relevant where the mask is at least this.
    """
    values = np.arange(256, dtype=np.float32)
    tinted = [values * (1 - TINT_STRENGTH) + np.float32(tint) * np.float32(TINT_STRENGTH) for tint in TINT]
    tinted = np.stack(tinted, axis=1).astype(np.uint8)  # [256, 3], by pixel value and channel
    darkened = (values * OUTSIDE_BRIGHTNESS).astype(np.uint8)
    result = Image.new("RGB", image.size)
    for rows in row_bands(image.height, image.width):
        around = slice(max(rows.start - 1, 0), rows.stop + 1)  # one more row on both sides, for the outline
        own = slice(rows.start - around.start, rows.stop - around.start)
        inside = mask[around].astype(np.float32) >= threshold
        pixels = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
        band = np.where(inside[own, :, None], tinted[pixels, [0, 1, 2]], darkened[pixels])
        band[_edge(inside)[own]] = OUTLINE
        result.paste(Image.fromarray(band), (0, rows.start))
    return result


def mask_picture(mask: np.ndarray, threshold: float | None = None) -> Image.Image:
    """Return a mask in greyscale, or in black and white if a threshold is given."""
    values = np.empty(mask.shape, dtype=np.uint8)
    for rows in row_bands(*mask.shape):
        if threshold is None:
            values[rows] = (mask[rows].astype(np.float32) * 255).round()
        else:
            values[rows] = (mask[rows] >= threshold) * np.uint8(255)
    return Image.fromarray(values)


def reduced(image: Image.Image, mask: np.ndarray | None, side: int) -> tuple[Image.Image, np.ndarray | None]:
    """Reduce image and mask to a longer side of at most `side` pixels, the mask by its nearest pixels."""
    if max(image.size) <= side:
        return image, mask
    size = tuple(max(1, round(length * side / max(image.size))) for length in image.size)
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if mask is None:
        return small, None
    rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], mask.shape, strict=True))
    return small, mask[rows[:, None], columns]


def grid(
    rows: Sequence[Sequence[Image.Image]],
    headers: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    cell: int = 160,
) -> Image.Image:
    """Draw pictures in rows under headers, each with its longer side fitted to the cell and a caption below.

    Args:
        rows: pictures, as many in each row as there are headers.
        headers: texts over the columns, wrapped where they are long.
        captions: a short text for each picture, or none.
        cell: side of a cell in pixels.
    """
    font = ImageFont.load_default(size=max(10, cell // 13))
    line = max(14, cell // 10)
    fitted = [[_fit(picture.convert("RGB"), cell) for picture in pictures] for pictures in rows]
    heights = [max(picture.height for picture in pictures) + GAP + (line if captions else 0) for pictures in fitted]
    titles = [_wrapped(text, font, cell) for text in headers]
    head = max(map(len, titles)) * line
    canvas = Image.new("RGB", (len(headers) * (cell + GAP) + GAP, sum(heights) + head + 2 * GAP), "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + column * (cell + GAP) for column in range(len(headers))]
    for left, lines in zip(lefts, titles, strict=True):
        for number, text in enumerate(lines):
            draw.text((left, GAP // 2 + number * line), text, fill="black", font=font)
    top = head + GAP
    for index, pictures in enumerate(fitted):
        for column, (left, picture) in enumerate(zip(lefts, pictures, strict=True)):
            canvas.paste(picture, (left + (cell - picture.width) // 2, top))
            if captions:
                bottom = top + heights[index] - line - GAP
                draw.text((left, bottom), captions[index][column], fill="black", font=font)
        top += heights[index]
    return canvas


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    large = picture.width * picture.height > BAND_PIXELS
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=1 if large else 6)  # level 6 takes minutes for large ones


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Wrap a text into lines of whole words that fit into `width` pixels; only a long word may exceed it."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    ratio = cell / max(picture.size)
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    return picture.resize(size, Image.Resampling.NEAREST if ratio > 1.5 else Image.Resampling.BILINEAR)


def _edge(inside: np.ndarray) -> np.ndarray:
    """Mark the foreground pixels that have a background pixel beside them."""
    padded = np.pad(inside, 1, mode="edge")
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded
