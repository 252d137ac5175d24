"""The place of masks in images: at the border, or at one place whatever the image."""

from __future__ import annotations

import numpy as np

from minmax_entropy.mask import BORDER, without_border
from minmax_entropy.metrics.state import MergeableState

GRID = 32  # places along a side


def border_share(marked: np.ndarray, width: float = BORDER) -> float:
    """Share of the marked pixels that lie close to the border of the image.

    A mask at the border, where there is nothing, is the commonest code by which a localizer tells a classifier the
    class without showing the object. Compare it with the share of the true masks, or with a CAM's; of a whole image it
    is 0.29.

    Args:
        marked: bool `[H, W]`.
        width: of the border, as a share of each side, in (0, 0.5).

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
    """Places of the masks of a class, over its images: `constancy`, how far they lie at one place whatever the image.

    It is the mean share of a mask that the mask of another image marks as well, on a grid of `GRID` x `GRID` places: 1
    where all masks are the same, the mean area where they lie anywhere.

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
        """Count a mask, bool `[H, W]`."""
        rows, columns = (np.arange(GRID) * side // GRID + side // (2 * GRID) for side in marked.shape)
        self.images += 1
        self.marked += marked[rows[:, None], columns]

    def compute(self) -> dict[str, float]:
        """Return `constancy`, and `marked_share` of the places, in [0, 1]; for two images or more of which one marks
        something."""
        total = int(self.marked.sum())
        if self.images < 2 or not total:
            return {}
        constancy = (self.marked * (self.marked - 1)).sum() / ((self.images - 1) * total)
        return {"constancy": float(constancy), "marked_share": total / (self.images * self.marked.size)}
