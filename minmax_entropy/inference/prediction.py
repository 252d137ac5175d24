"""The prediction of one picture: class, mask, boxes, overlay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minmax_entropy.metrics import region_boxes
from minmax_entropy.report.pictures import mask_picture, overlay, reduced, save_picture

# Regions smaller than this share of the picture are left out of the boxes.
MIN_REGION = 0.001
# Overlays are to be looked at: larger pictures are reduced to this for them. Masks are never reduced.
OVERLAY_SIDE = 8192
SUFFIXES = {"overlay": "_overlay.png", "mask": "_mask.png"}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Prediction of one picture.

    Attributes:
        index: number of the picture in the order given.
        class_index: the most probable class, also where there is nothing.
        probability: of that class.
        mask: float32 `[H, W]` in [0, 1], at the picture's own size; zeros where there is nothing, and for one of the
            model's `empty_classes`.
        probabilities: float32 `[K]`.
        nothing: whether the probability is below `min_probability`.
        class_name: name of the class, where the model has names.
        threshold: a pixel is marked where the mask is at least this.
        image: the picture, in predictions of a `Predictor`.
        source: file of the picture, where it came from one.
    """

    index: int
    class_index: int
    probability: float
    mask: np.ndarray
    probabilities: np.ndarray
    nothing: bool = False
    class_name: str | None = None
    threshold: float = 0.5
    image: Image.Image | None = dataclasses.field(default=None, repr=False)
    source: Path | None = None

    @property
    def marked(self) -> np.ndarray:
        """Marked pixels, bool `[H, W]`."""
        return self.mask >= self.threshold

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Boxes `(x0, y0, x1, y1)` of the connected marked regions, the largest first."""
        return region_boxes(self.marked, round(MIN_REGION * self.mask.size))

    def overlay(self) -> Image.Image:
        """Return the picture with the marked pixels tinted and outlined, at most 8192 pixels on its longer side.

        Raises:
            ValueError: the prediction does not have its picture.
        """
        if self.image is None:
            raise ValueError("this prediction does not hold its picture: predict with a Predictor")
        return overlay(*reduced(self.image, self.marked, OVERLAY_SIDE))

    def save(self, folder: str | Path, name: str | None = None) -> dict[str, Path]:
        """Write `<name>_overlay.png` and `<name>_mask.png` (0 and 255, at the picture's own size).

        Args:
            folder: where to; it is made.
            name: by default that of the picture's file, or its number.

        Returns:
            The paths, by `overlay` and `mask`.
        """
        stem = name or (self.source.stem if self.source is not None else f"{self.index:06d}")
        paths = {kind: Path(folder) / f"{stem}{suffix}" for kind, suffix in SUFFIXES.items()}
        save_picture(self.overlay(), paths["overlay"])
        save_picture(mask_picture(self.marked), paths["mask"])
        return paths

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON: `image`, `class` (name or index; None where there is nothing), `probability`,
        `boxes` and `share` (share of marked pixels)."""
        named = self.class_index if self.class_name is None else self.class_name
        return {
            "image": self.index if self.source is None else str(self.source),
            "class": None if self.nothing else named,
            "probability": round(self.probability, 4),
            "boxes": [list(box) for box in self.boxes],
            "share": round(float(self.marked.mean()), 4),
        }
