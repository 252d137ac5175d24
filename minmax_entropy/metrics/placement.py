"""Metrics of where masks lie: at the border of the image, or at the same place in every image."""

from __future__ import annotations

import numpy as np

from minmax_entropy.mask import BORDER, without_border
from minmax_entropy.metrics.state import MergeableState

GRID = 32  # points along a side


def border_share(marked: np.ndarray, width: float = BORDER) -> float:
    """Compute the share of the marked pixels that lie close to the border of the image.

    A mask at the border, where there is no object, is the most common code by which a localizer tells a classifier the
    class without showing the object. Compare the share with that of the true masks or of a CAM; for a whole image it is
    0.29.

    Args:
        marked: bool `[H, W]`.
        width: width of the border, as a share of each side, in (0, 0.5).

    Returns:
        A share in [0, 1]; NaN where nothing is marked.

    >>> marked = np.zeros((100, 100), dtype=bool)
    >>> marked[:16, 40:60] = True
    >>> border_share(marked)
    0.5
    """
    total, inside = np.count_nonzero(marked), np.count_nonzero(marked[without_border(*marked.shape, width)])
    return float((total - inside) / total) if total else float("nan")


class MaskPlaces(MergeableState):
    """Places of the masks of a class, with their `constancy`: how far they lie at the same place in every image.

    It is the mean share of a mask that the mask of another image marks as well, on a grid of `GRID` x `GRID` points: 1
    if all masks are the same, the mean area if they lie anywhere.

    >>> places = MaskPlaces()
    >>> for column in (2, 2, 5):
    ...     places.update(np.arange(64 * 64).reshape(64, 64) // 8 % 8 == column)
    >>> round(places.compute()["constancy"], 3)
    0.333
    """

    sums = ("images", "marked")

    def __init__(self) -> None:
        self.images = 0
        self.marked = np.zeros((GRID, GRID), dtype=np.int64)

    def update(self, marked: np.ndarray) -> None:
        """Add a mask, bool `[H, W]`."""
        rows, columns = (np.arange(GRID) * side // GRID + side // (2 * GRID) for side in marked.shape)
        self.images += 1
        self.marked += marked[rows[:, None], columns]

    def compute(self) -> dict[str, float]:
        """Return `constancy` and `marked_share` of the points, in [0, 1]; empty for a single image or without marks."""
        total = int(self.marked.sum())
        if self.images < 2 or not total:
            return {}
        constancy = (self.marked * (self.marked - 1)).sum() / ((self.images - 1) * total)
        return {"constancy": float(constancy), "marked_share": total / (self.images * self.marked.size)}
