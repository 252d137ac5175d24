"""Bundled synthetic images: textured objects on clutter, made from a seed, with exact masks and boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from minmax_entropy.data.dataset import LabelledImages
from minmax_entropy.data.sources import register_reader

# Shares of the image's side.
RADIUS = (0.16, 0.29)
PERIOD = (0.1, 0.14)
MAX_OBJECTS = 3
DECOYS = (1, 4)
STROKES = (8, 16)
# Objects of one image differ in contrast: share of the distance between the two colours of their texture.
CONTRAST = (0.37, 1.0)
MIN_COLOUR_DISTANCE = 190
NOISE = 10.0

# Memory for images and instances that were drawn, in bytes: about 10,000 images of 64 pixels.
KEPT_BYTES = 256 * 2**20
LENGTHS = {"train": 2000, "valid": 300, "test": 300}


def _dots(u: np.ndarray, v: np.ndarray, turn: float) -> np.ndarray:
    return np.cos(u) + np.cos(v) > 0.7


_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "rows": lambda u, v, turn: np.sin(v) > 0,
    "columns": lambda u, v, turn: np.sin(u) > 0,
    "checks": lambda u, v, turn: (np.sin(u * 0.8) > 0) ^ (np.sin(v * 0.8) > 0),
    "dots": _dots,
    "diagonals": lambda u, v, turn: np.sin((u + np.sign(turn) * v) * 0.75) > 0,
    "circles": lambda u, v, turn: np.sin(np.hypot(u, v)) > 0,
}


def _polygon(corners: int, inner: float = 1.0) -> np.ndarray:
    """Return the corners of a regular polygon of radius 1, or of a star whose every other corner has radius `inner`."""
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    angles = np.arange(corners) * 2 * math.pi / corners
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


_OUTLINES = [_polygon(3), _polygon(4), _polygon(5), _polygon(6), _polygon(40), _polygon(10, 0.6), _polygon(8, 0.65)]


class SyntheticShapes(LabelledImages):
    """Textured objects on clutter, drawn with NumPy and Pillow from a seed; nothing is downloaded.

    An image holds one to three objects of its class. Only the texture of the objects determines the class: outline,
    size, colours and contrast are drawn alike for every class, as is the clutter of soft colour, strokes and untextured
    decoys. Objects of one image differ in contrast: the clearest one gives the class away, and the others have to be
    searched for. Image `i` depends on `seed` and `i` only. Images are kept in memory, up to 256 MiB; further ones are
    drawn on each access.

    Args:
        length: number of images; the class of image `i` is `i % num_classes`.
        size: height and width in pixels, 32 or more.
        num_classes: 2 to 6, the first of rows, columns, checks, dots, diagonals, circles.
        seed: use different seeds for training, validation and test.
        empty: images of clutter alone, with empty masks and meaningless classes, to test what a model predicts where
            there is no object.

    >>> data = SyntheticShapes(length=6, size=64)
    >>> data[4].image.size, data[4].mask.shape, data.class_names[data[4].target]
    ((64, 64), (64, 64), 'diagonals')
    """

    def __init__(
        self, length: int = 1000, size: int = 64, num_classes: int = 6, seed: int = 0, empty: bool = False
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be 1 or more, got {length}")
        if size < 32:
            raise ValueError(f"size must be 32 pixels or more, got {size}")
        if not 2 <= num_classes <= len(_TEXTURES):
            raise ValueError(f"num_classes must be 2 to {len(_TEXTURES)}, got {num_classes}")
        self.length, self.size, self.seed, self.empty = length, size, seed, empty
        self.class_names = list(_TEXTURES)[:num_classes]
        self._drawn: dict[int, tuple[Image.Image, np.ndarray]] = {}
        self._drawn_bytes = 0

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        return self._draw(index)[0]

    def target(self, index: int) -> int:
        return index % len(self.class_names)

    def mask(self, index: int) -> np.ndarray:
        return self.instances(index).any(axis=0)

    def name(self, index: int) -> str:
        return f"synthetic_{self.seed}_{index:05d}_{self.class_names[self.target(index)]}"

    def instances(self, index: int) -> np.ndarray:
        """Return the pixels of each object, bool `[N, H, W]`; objects do not overlap."""
        return self._draw(index)[1]

    def boxes(self, index: int) -> list[tuple[int, int, int, int]]:
        """Return a box around each object, `(x0, y0, x1, y1)` in pixels, `x1` and `y1` exclusive."""
        boxes = []
        for instance in self.instances(index):
            rows, columns = np.nonzero(instance)
            boxes.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
        return boxes

    def _draw(self, index: int) -> tuple[Image.Image, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside of {self.length} images")
        if index in self._drawn:
            return self._drawn[index]
        rng = np.random.default_rng([self.seed, index])
        pixels = np.asarray(_clutter(rng, self.size), dtype=np.float64).copy()
        if self.empty:
            instances = np.zeros((0, self.size, self.size), dtype=bool)
        else:
            instances = _objects(rng, pixels, _TEXTURES[self.class_names[self.target(index)]])
        pixels += rng.normal(0, NOISE, pixels.shape)
        drawn = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), instances
        size = pixels.size + instances.nbytes
        if self._drawn_bytes + size <= KEPT_BYTES:
            self._drawn[index] = drawn
            self._drawn_bytes += size
        return drawn


@register_reader("shapes", reads_folder=False)
def open_shapes(
    source: str,
    split: str = "train",
    classes: Sequence[str] | None = None,
    length: int | None = None,
    size: int = 64,
    num_classes: int | None = None,
    seed: int = 0,
) -> SyntheticShapes:
    """Open the bundled synthetic images, different ones for each part.

    Args:
        source: empty: nothing follows "shapes:".
        split: part `k` of train, valid, test has the images of `SyntheticShapes(seed=3 * seed + k)`.
        classes: the first classes of `SyntheticShapes`, in its order.
        length: number of images, by default 2000 for "train" and 300 for the others.
        size: height and width in pixels.
        num_classes: 2 to 6, by default the number of `classes`, or 6.
        seed: 0 or more.

    Raises:
        ValueError: other classes, an argument out of its range, or text after "shapes:".
    """
    if source:
        raise ValueError(f"the bundled synthetic images are 'shapes:', with nothing behind it, got {source!r}")
    if num_classes is None:
        num_classes = len(_TEXTURES) if classes is None else len(classes)
    part = list(LENGTHS).index(split)
    dataset = SyntheticShapes(LENGTHS[split] if length is None else length, size, num_classes, seed=3 * seed + part)
    return dataset if classes is None else dataset.with_classes(classes)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(20, 236, 3))


def _outline(rng: np.random.Generator, radius: float, centre: tuple[float, float]) -> list[tuple[float, float]]:
    """Return a random outline, rotated and placed."""
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = (_OUTLINES[rng.integers(len(_OUTLINES))] @ turn.T) * radius
    return [(x + centre[0], y + centre[1]) for x, y in corners]


def _clutter(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw soft colour patches, strokes, and decoys: objects without a texture."""
    patches = Image.fromarray(rng.integers(40, 216, (4, 4, 3)).astype(np.uint8))
    canvas = patches.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(*DECOYS)):
        radius = rng.uniform(RADIUS[0] / 2, RADIUS[1]) * size
        draw.polygon(_outline(rng, radius, tuple(rng.uniform(0, size, 2))), fill=_colour(rng))
    for _ in range(rng.integers(*STROKES)):
        start = rng.uniform(0, size, 2)
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.08, 0.35) * size
        end = length * np.array([math.cos(angle), math.sin(angle)]) + start
        draw.line([tuple(start), tuple(end)], fill=_colour(rng), width=int(rng.integers(1, max(2, size // 24) + 1)))
    return canvas.filter(ImageFilter.GaussianBlur(0.5))


def _objects(rng: np.random.Generator, pixels: np.ndarray, texture: Callable) -> np.ndarray:
    """Paint one to three non-overlapping objects into `pixels`, and return their masks, bool `[N, H, W]`."""
    size = pixels.shape[0]
    rows, columns = np.mgrid[:size, :size]
    placed: list[tuple[float, float, float]] = []
    masks = []
    wanted = rng.integers(1, MAX_OBJECTS + 1)
    contrasts = [CONTRAST[1], *rng.uniform(*CONTRAST, wanted - 1)]
    for contrast in contrasts:
        for _ in range(20):
            radius = rng.uniform(*RADIUS) * size
            x, y = rng.uniform(radius, size - radius, 2)
            if all(math.hypot(x - px, y - py) > radius + pr + 1 for px, py, pr in placed):
                break
        else:
            continue
        placed.append((x, y, radius))
        mask = Image.new("1", (size, size))
        ImageDraw.Draw(mask).polygon(_outline(rng, radius, (x, y)), fill=1)
        mask = np.asarray(mask, dtype=bool)
        first, second = np.array(_colour(rng)), np.array(_colour(rng))
        while np.abs(first - second).sum() < MIN_COLOUR_DISTANCE:
            second = np.array(_colour(rng))
        frequency = 2 * math.pi / (rng.uniform(*PERIOD) * size)
        phase = rng.uniform(-1, 1, 2) * radius / 3
        turn = rng.uniform(-1, 1)
        u, v = (columns - x - phase[0]) * frequency, (rows - y - phase[1]) * frequency
        share = 0.5 + (texture(u, v, turn)[mask] - 0.5) * contrast
        pixels[mask] = first + share[:, None] * (second - first)
        masks.append(mask)
    return np.stack(masks)
