"""Box metrics: MaxBoxAcc, MaxBoxAccV2, and localization at one threshold (GT-known, Top-1, Top-5)."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from minmax_entropy.metrics.classification import TOP, resolve_rank
from minmax_entropy.metrics.regions import regions_by_level
from minmax_entropy.metrics.state import MergeableState

Boxes = Sequence[Sequence[float]] | np.ndarray

# Thresholds k / LEVELS. The evaluation code of Choe et al. has steps of 0.001 by default and of 0.01 in its example;
# the effect and the cost of the finer grid are in docs/results/metrics.md.
LEVELS = 100
MAX_LEVELS = 10_000
IOU = 0.5  # a box is correct from this IoU on
IOUS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2


def checked_boxes(boxes: Boxes) -> np.ndarray:
    """Check boxes `(x0, y0, x1, y1)`, `x1` and `y1` exclusive, and return them as an array of floats, `[N, 4]`.

    Raises:
        ValueError: the shape differs, or a box has no area or is not finite.
    """
    array = np.asarray(boxes, dtype=np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes [N, 4] of (x0, y0, x1, y1) are expected, got shape {array.shape}")
    wrong = ~(np.isfinite(array).all(axis=1) & (array[:, :2] < array[:, 2:]).all(axis=1))
    if wrong.any():
        raise ValueError(f"box {array[wrong][0].tolist()} must be finite (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
    return array


def box_iou(boxes: Boxes, others: Boxes) -> np.ndarray:
    """Compute the intersection over union of each of `boxes` with each of `others`, in [0, 1].

    Args:
        boxes: `(x0, y0, x1, y1)`, `x1` and `y1` exclusive, `[N, 4]`.
        others: likewise, `[M, 4]`.

    Returns:
        `[N, M]`.

    Raises:
        ValueError: a box has no area, is not finite, or does not have four numbers.

    >>> box_iou([(0, 0, 2, 2)], [(1, 0, 3, 2), (0, 0, 2, 4), (2, 0, 4, 2)]).round(3).tolist()
    [[0.333, 0.5, 0.0]]
    """
    first, second = checked_boxes(boxes)[:, None], checked_boxes(others)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.maximum(sides, 0).prod(axis=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(axis=-1) + (second[..., 2:] - second[..., :2]).prod(axis=-1)
    return shared / (areas - shared)


def box_overlaps(mask: np.ndarray, boxes: Boxes, levels: int = LEVELS) -> tuple[np.ndarray, np.ndarray]:
    """Compute the IoU of a mask's boxes with the true ones, at each threshold `k / levels`, `k = 0 ... levels - 1`.

    At each threshold, the mask splits into 8-connected regions, and each has a box. Thresholds with no pixel value
    between them give the same regions and are handled once.

    Args:
        mask: values in [0, 1], `[H, W]`; a pixel is foreground where it is at least the threshold.
        boxes: true boxes `(x0, y0, x1, y1)`, `x1` and `y1` exclusive; at least one.
        levels: number of thresholds.

    Returns:
        Best IoU of the largest region (the first of equally large ones) with a true box, `[levels]`; best IoU of any
        region with any true box, `[levels]`. 0 where the mask is below the threshold everywhere.
    """
    bins = np.clip((mask * levels).astype(np.int32), 0, levels - 1)
    present = np.bincount(bins.ravel(), minlength=levels) > 0
    rank = present.cumsum()  # rank of each bin among those that hold pixels, from 1
    count = int(rank[-1])
    largest, best = np.zeros(count + 1), np.zeros(count + 1)  # by rank; the last stands for an empty mask
    for k, pixels, found in regions_by_level(rank.astype(np.int16)[bins], count):
        iou = box_iou(found, boxes).max(axis=1)
        order = np.lexsort((-pixels, k))  # stable: of equally large ones the first in reading order
        level, first = np.unique(k[order], return_index=True)
        largest[level - 1] = iou[order[first]]
        np.maximum.at(best, k - 1, iou)
    of_threshold = rank - present  # `mask >= k / levels` has the pixels of the bins from k on
    return largest[of_threshold], best[of_threshold]


class BoxAccuracy(MergeableState):
    """MaxBoxAcc and MaxBoxAccV2: share of images with a correct box, at the best threshold for the data set.

    MaxBoxAcc (Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020): an image
    counts if the box around the mask's largest connected region has an IoU of 0.5 or more with a true box.
    MaxBoxAccV2 (arXiv 2007.04178): it counts if any region's box has an IoU of at least delta with any true box; the
    shares, each at its best threshold, are averaged over the deltas 0.3, 0.5 and 0.7.

    Args:
        levels: number of thresholds, `k / levels` with `k = 0 ... levels - 1`; in 1 ... 10,000.

    Raises:
        ValueError: `levels` is anything else.
    """

    settings = ("levels",)
    sums = ("images", "largest", "any_region")

    def __init__(self, levels: int = LEVELS) -> None:
        if isinstance(levels, bool) or not hasattr(levels, "__index__") or not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels must be an integer of 1 to {MAX_LEVELS}, got {levels!r}")
        self.levels = operator.index(levels)
        self.images = 0
        self.largest = np.zeros(self.levels, dtype=np.int64)
        self.any_region = np.zeros((len(IOUS), self.levels), dtype=np.int64)

    def update(self, mask: np.ndarray, boxes: Boxes) -> None:
        """Add an image: mask in [0, 1], `[H, W]`, and its true boxes; an image without boxes is left out.

        Raises:
            ValueError: a box has no area, is not finite, or does not have four numbers.
        """
        boxes = checked_boxes(boxes)
        if not len(boxes):
            return
        largest, best = box_overlaps(mask, boxes, self.levels)
        self.images += 1
        self.largest += largest >= IOU
        self.any_region += best >= np.array(IOUS)[:, None]

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the shares of images by threshold, in [0, 1]: MaxBoxAcc `[levels]` and MaxBoxAccV2 `[3, levels]`."""
        return self.largest / max(self.images, 1), self.any_region / max(self.images, 1)

    def compute(self) -> dict[str, float]:
        """Return `max_box_acc` and `max_box_acc_v2`, in [0, 1]; empty if no image has true boxes."""
        if not self.images:
            return {}
        largest, any_region = self.curve()
        return {"max_box_acc": float(largest.max()), "max_box_acc_v2": float(any_region.max(axis=1).mean())}


class LocalizationAccuracy(MergeableState):
    """GT-known, Top-1 and Top-5 localization accuracy, with boxes at one threshold of the mask.

    Share of images whose box has an IoU of 0.5 or more with a true box; for Top-1 the class must be correct as well,
    for Top-5 it must be among the first five (Russakovsky et al., ILSVRC, IJCV 2015; Zhou et al., CAM, CVPR 2016). Each
    is computed over the images where it is known.
    """

    sums = ("images", "located", "classified", "top1", "ranked", "top5")

    def __init__(self) -> None:
        self.images = self.located = self.classified = self.top1 = self.ranked = self.top5 = 0

    def update(self, iou: float, correct: bool | None = None, rank: int | None = None) -> None:
        """Add an image.

        Args:
            iou: IoU of the box with the true box that it fits best, in [0, 1].
            correct: whether the class was correct.
            rank: rank of the true class, which determines `correct`; see `target_rank`.

        Raises:
            ValueError: the rank is not an integer of 0 or more, or the two contradict each other.
        """
        correct, rank = resolve_rank(correct, rank)
        located = bool(iou >= IOU)
        self.images += 1
        self.located += located
        if correct is not None:
            self.classified += 1
            self.top1 += located and correct
        if rank is not None:
            self.ranked += 1
            self.top5 += located and rank < TOP

    def compute(self) -> dict[str, float]:
        """Return `gt_known_loc`, `top1_loc`, `top5_loc`, in [0, 1], where they are known."""
        shares = {
            "gt_known_loc": (self.located, self.images),
            "top1_loc": (self.top1, self.classified),
            "top5_loc": (self.top5, self.ranked),
        }
        return {name: hits / images for name, (hits, images) in shares.items() if images}
