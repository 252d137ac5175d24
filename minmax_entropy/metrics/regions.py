"""Connected regions of a mask, at one threshold or at all thresholds in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

# Bounds the memory (docs/results/metrics.md). Portions five times as large outgrew the cache and took 40 % longer.
RUNS_AT_ONCE = 50_000


def region_boxes(mask: np.ndarray, min_pixels: int = 1) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the 8-connected regions, largest region first.

    Args:
        mask: boolean `[H, W]`.
        min_pixels: smaller regions are left out.

    Returns:
        `(x0, y0, x1, y1)` in pixels, `x1` and `y1` exclusive.

    >>> region_boxes(np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool))
    [(0, 0, 3, 2), (0, 3, 1, 4)]
    """
    _, pixels, boxes = _regions(np.asarray(mask, dtype=bool).astype(np.int8))
    order = np.argsort(-pixels, kind="stable")
    return [tuple(box) for box in boxes[order][pixels[order] >= min_pixels].tolist()]


def regions_by_level(levels: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the 8-connected regions of `levels >= k` for every k from 1 to `count`, in portions of bounded memory.

    Args:
        levels: integers from 0 to `count`, `[H, W]`.
        count: number of thresholds.

    Yields:
        For consecutive thresholds: k of each region `[N]`, rising; its pixel count `[N]`; its box `(x0, y0, x1, y1)`,
        `x1` and `y1` exclusive, `[N, 4]`. Regions of one k are in reading order of their first pixels.
    """
    padded = np.pad(levels, ((0, 0), (1, 0)))
    before, after = padded[:, :-1], padded[:, 1:]
    rising = before < after
    started = np.bincount(before[rising], minlength=count + 1) - np.bincount(after[rising], minlength=count + 1)
    portion = started[:count].cumsum().cumsum() // RUNS_AT_ONCE  # the first sum is the number of runs of a threshold
    bounds = [0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), count]
    for low, high in itertools.pairwise(bounds):
        k, pixels, boxes = _regions(np.clip(levels - low, 0, high - low))
        yield k + low, pixels, boxes


def _regions(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level, pixel count and box of each region of `levels >= k`, for all k from 1 on.

    Rows are cut into runs, and runs of neighbouring rows that touch are joined. The thresholds are stacked below one
    another with an empty row between, so that one pass handles all of them.
    """
    height, width = levels.shape
    padded = np.pad(levels, ((0, 0), (1, 1)))
    level, place = _crossings(padded[:, :-1], padded[:, 1:])
    starts = place % (width + 1)
    ends = _crossings(padded[:, 1:], padded[:, :-1])[1] % (width + 1)  # exclusive; they match in reading order
    rows = place // (width + 1)
    lines = level * (height + 1) + rows
    # A run touches the runs of the line above that start at or before its end and end at or after its start.
    stride = width + 2
    first = np.searchsorted(lines * stride + ends, (lines - 1) * stride + starts)
    last = np.searchsorted(lines * stride + starts, (lines - 1) * stride + ends, side="right")
    lower, offset = _repeat(np.maximum(last - first, 0))
    label = _joined(len(lines), lower, first[lower] + offset)
    roots = np.flatnonzero(label == np.arange(len(label)))  # the first run of each region in reading order
    region = np.searchsorted(roots, label)
    pixels = np.bincount(region, weights=ends - starts, minlength=len(roots)).astype(np.int64)
    x0, y0, x1, y1 = starts[roots], rows[roots], ends[roots], rows[roots] + 1
    np.minimum.at(x0, region, starts)
    np.maximum.at(x1, region, ends)
    np.maximum.at(y1, region, rows + 1)
    return level[roots] + 1, pixels, np.stack([x0, y0, x1, y1], axis=1)


def _crossings(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where thresholds lie between two images: indices of threshold and place, sorted in this order."""
    places = np.flatnonzero(low < high)
    low, high = low.ravel()[places], high.ravel()[places]
    which, offset = _repeat(high - low)
    thresholds = low[which] + offset
    order = np.argsort(thresholds.astype(np.int16), kind="stable")  # a radix sort
    return thresholds[order], places[which[order]]


def _repeat(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat each index by its count, and number the repetitions of each from 0."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)


def _joined(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the lowest number that each of `count` numbers is joined to by pairs, `[count]`.

    Where a pair joins two roots, the higher one is attached to the lower one; then every number is attached directly to
    its root, and pairs within one tree are done.
    """
    label = np.arange(count)
    while len(first):
        first, second = label[first], label[second]
        apart = first != second
        first, second = first[apart], second[apart]
        np.minimum.at(label, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(above := label[label], label):
            label = above
    return label
