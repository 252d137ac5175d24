"""Connected regions of a binary mask."""

from __future__ import annotations

import numpy as np


def region_boxes(mask: np.ndarray, min_pixels: int = 1) -> list[tuple[int, int, int, int]]:
    """Boxes of the 8-connected regions, largest region first.

    Rows are cut into runs; runs of neighbouring rows that touch are joined by passing the lowest number along until
    nothing changes.

    Args:
        mask: boolean `[H, W]`.
        min_pixels: smaller regions are left out.

    Returns:
        `(x0, y0, x1, y1)` in pixels, `x1` and `y1` exclusive.

    >>> region_boxes(np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool))
    [(0, 0, 3, 2), (0, 3, 1, 4)]
    """
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]  # exclusive; runs are in reading order, so the two lists match
    if not len(rows):
        return []
    # A run touches those of the row above that start at or before its end and end at or after its start.
    width = mask.shape[1] + 2
    first = np.searchsorted(rows * width + ends, (rows - 1) * width + starts)
    last = np.searchsorted(rows * width + starts, (rows - 1) * width + ends, side="right")
    counts = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(len(rows)), counts)
    upper = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(first, counts)
    label = np.arange(len(rows))
    while True:
        best = np.minimum(label[lower], label[upper])
        updated = label.copy()
        np.minimum.at(updated, lower, best)
        np.minimum.at(updated, upper, best)
        np.minimum.at(updated, label, updated)
        updated = updated[updated]
        if (updated == label).all():
            break
        label = updated
    regions, index = np.unique(label, return_inverse=True)
    pixels = np.bincount(index, weights=ends - starts)
    x0, y0 = np.full(len(regions), mask.shape[1]), np.full(len(regions), mask.shape[0])
    x1, y1 = np.zeros(len(regions), dtype=int), np.zeros(len(regions), dtype=int)
    np.minimum.at(x0, index, starts)
    np.maximum.at(x1, index, ends)
    np.minimum.at(y0, index, rows)
    np.maximum.at(y1, index, rows + 1)
    order = [region for region in np.argsort(-pixels, kind="stable") if pixels[region] >= min_pixels]
    return [(int(x0[r]), int(y0[r]), int(x1[r]), int(y1[r])) for r in order]
