"""Embedded data: objects on clutter, made from a seed, with exact masks and boxes."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from minmax_entropy.data.dataset import LabelledImages

CLASS_NAMES = ["disk", "square", "triangle", "star", "cross", "ring"]
# Share of the image's side: radius of the objects.
RADIUS = (0.13, 0.24)
MAX_OBJECTS = 3
CLUTTER_STROKES = (10, 18)
MAX_TILT = math.pi / 8


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """Corners of a regular polygon of radius 1, or of a star whose inner corners have radius `inner`."""
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    angles = turn - math.pi / 2 + np.arange(corners) * 2 * math.pi / corners
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


_CROSS = np.array(
    [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
) / math.sqrt(10)

_OUTLINES: dict[str, np.ndarray] = {
    "disk": _polygon(40),
    "square": _polygon(4, turn=math.pi / 4),
    "triangle": _polygon(3),
    "star": _polygon(10, inner=0.42),
    "cross": _CROSS,
    "ring": _polygon(40),
}
_RING_HOLE = 0.5


class SyntheticShapes(LabelledImages):
    """Objects of one class on clutter; made with NumPy and Pillow from a seed, nothing is downloaded.

    An image holds one to three objects of its class, of any colour, size and slight tilt, on a background of soft
    colour, strokes and fragments that is drawn alike for every class: the outline of the objects alone decides the
    class. Image `i` depends on `seed` and `i` only.

    Args:
        length: number of images; the class of image `i` is `i % num_classes`.
        size: height and width in pixels, 32 or more.
        num_classes: 2 to 6 of disk, square, triangle, star, cross, ring.
        seed: use different seeds for training, validation and test.

    >>> sample = SyntheticShapes(length=6, size=64)[4]
    >>> sample.image.size, sample.mask.shape, SyntheticShapes.ALL_CLASSES[sample.target]
    ((64, 64), (64, 64), 'cross')
    """

    ALL_CLASSES = tuple(CLASS_NAMES)

    def __init__(self, length: int = 1000, size: int = 64, num_classes: int = 6, seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length must be 1 or more, got {length}")
        if size < 32:
            raise ValueError(f"size must be 32 pixels or more, got {size}")
        if not 2 <= num_classes <= len(CLASS_NAMES):
            raise ValueError(f"num_classes must be 2 to {len(CLASS_NAMES)}, got {num_classes}")
        self.length, self.size, self.seed = length, size, seed
        self.class_names = CLASS_NAMES[:num_classes]
        self._drawn: dict[int, tuple[Image.Image, np.ndarray]] = {}

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
        """Object pixels one by one, bool `[N, H, W]`; objects do not overlap."""
        return self._draw(index)[1]

    def boxes(self, index: int) -> list[tuple[int, int, int, int]]:
        """A box around each object, `(x0, y0, x1, y1)` in pixels, `x1` and `y1` exclusive."""
        boxes = []
        for instance in self.instances(index):
            rows, columns = np.nonzero(instance)
            boxes.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
        return boxes

    def _draw(self, index: int) -> tuple[Image.Image, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside of {self.length} images")
        if index not in self._drawn:
            rng = np.random.default_rng([self.seed, index])
            canvas = _background(rng, self.size)
            instances = _objects(rng, canvas, self.class_names[self.target(index)])
            noise = rng.normal(0, 10, (self.size, self.size, 3))
            pixels = (np.asarray(canvas, dtype=np.float64) + noise).clip(0, 255).astype(np.uint8)
            self._drawn[index] = Image.fromarray(pixels), instances
        return self._drawn[index]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(20, 236, 3))


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """Soft colour patches, then strokes and fragments."""
    coarse = Image.fromarray(rng.integers(40, 216, (4, 4, 3)).astype(np.uint8))
    canvas = coarse.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(*CLUTTER_STROKES)):
        x, y = rng.uniform(0, size, 2)
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.08, 0.35) * size
        end = x + length * math.cos(angle), y + length * math.sin(angle)
        if rng.random() < 0.6:
            draw.line([(x, y), end], fill=_colour(rng), width=int(rng.integers(1, max(2, size // 24) + 1)))
        else:
            third = rng.uniform(-0.12, 0.12, 2) * size + (x, y)
            draw.polygon([(x, y), end, tuple(third)], fill=_colour(rng))
    return canvas.filter(ImageFilter.GaussianBlur(0.5))


def _objects(rng: np.random.Generator, canvas: Image.Image, class_name: str) -> np.ndarray:
    """Draw one to three objects that do not overlap; bool `[N, H, W]`."""
    size = canvas.width
    draw = ImageDraw.Draw(canvas)
    placed: list[tuple[float, float, float]] = []
    masks = []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        for _ in range(20):
            radius = rng.uniform(*RADIUS) * size / (1 if not placed else 1.25)
            x, y = rng.uniform(radius, size - radius, 2)
            if all(math.hypot(x - px, y - py) > radius + pr + 1 for px, py, pr in placed):
                break
        else:
            continue
        placed.append((x, y, radius))
        tilt = rng.uniform(-MAX_TILT, MAX_TILT)
        turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
        outline = _OUTLINES[class_name] @ turn.T
        mask = Image.new("1", canvas.size)
        pen = ImageDraw.Draw(mask)
        pen.polygon([tuple(point) for point in outline * radius + (x, y)], fill=1)
        if class_name == "ring":
            pen.polygon([tuple(point) for point in outline * radius * _RING_HOLE + (x, y)], fill=0)
        draw.bitmap((0, 0), mask, fill=_colour(rng))
        masks.append(np.asarray(mask, dtype=bool))
    return np.stack(masks)
