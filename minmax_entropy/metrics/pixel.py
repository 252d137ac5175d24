"""Pixel metrics: Dice and IoU at one threshold; precision, recall and IoU at all thresholds."""

from __future__ import annotations

import numpy as np

from minmax_entropy.metrics.state import UNIT, MergeableState, to_units

BINS = 1000
TOLERANCE = 1e-5  # for values beyond [0, 1]: resizing rounds


def checked_mask(mask: np.ndarray) -> np.ndarray:
    """Return a mask as an array of floats, `[H, W]`.

    Raises:
        ValueError: it has another number of axes, no pixels, NaN, or values outside [0, 1].
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask [H, W] is expected, got shape {mask.shape}")
    if mask.dtype.kind != "f" or mask.itemsize < 4:
        mask = mask.astype(np.float32)
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        found = "holds NaN" if np.isnan(low + high) else f"has values from {low:g} to {high:g}"
        raise ValueError(f"the mask {found}; values in [0, 1] are expected (a sigmoid's, or after min-max scaling)")
    return mask


def checked_target(target: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the object pixels as a boolean array of the mask's shape.

    Raises:
        ValueError: the shape differs, or the values are not booleans.
    """
    target = np.asarray(target)
    if target.shape != shape:
        raise ValueError(f"mask {shape} and target_mask {target.shape} differ in shape")
    if target.dtype != bool:
        raise ValueError(f"target_mask must be boolean, got {target.dtype}: write for example `target_mask > 127`")
    return target


def dice(prediction: np.ndarray, target: np.ndarray, empty: float = 1.0) -> float:
    """Compute the Dice coefficient, `2 |A and B| / (|A| + |B|)`, in [0, 1].

    F1+ of an image is `dice(mask >= 0.5, target)`, F1- is that of their complements.

    Args:
        prediction, target: boolean arrays of the same shape.
        empty: value where both are empty.

    Raises:
        ValueError: the shapes differ.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape")
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(target))
    return 2 * int(np.count_nonzero(prediction & target)) / total if total else empty


class MaskScores(MergeableState):
    """F1+, F1- and pIoU of masks binarized at one threshold.

    F1+ and F1- are the Dice coefficients of foreground and background of each image, averaged over the images; 1 where
    both are empty (arXiv 1907.12934). pIoU is TP / (TP + FP + FN) over the pixels of all images taken together.

    Args:
        threshold: a pixel is foreground where the mask is at least this.
    """

    settings = ("threshold",)
    sums = ("images", "foreground", "background", "intersection", "union", "object_pixels")

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = float(threshold)
        self.images = self.foreground = self.background = 0
        self.intersection = self.union = self.object_pixels = 0

    def update(self, mask: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Add an image: mask in [0, 1] and boolean object pixels, both `[H, W]`.

        Returns:
            `f1_foreground` and `f1_background` of the image.
        """
        binary = mask >= self.threshold
        found, there = int(np.count_nonzero(binary)), int(np.count_nonzero(target))
        both = int(np.count_nonzero(binary & target))
        neither = binary.size - found - there + both
        rest = 2 * binary.size - found - there  # background pixels of the mask and of the target
        foreground = 2 * both / (found + there) if found + there else 1.0
        background = 2 * neither / rest if rest else 1.0
        self.images += 1
        self.foreground += to_units(foreground)
        self.background += to_units(background)
        self.intersection += both
        self.union += found + there - both
        self.object_pixels += there
        return {"f1_foreground": foreground, "f1_background": background}

    def compute(self) -> dict[str, float]:
        """Return `f1_foreground`, `f1_background`, `piou`, in [0, 1]; the last is NaN without object pixels."""
        if not self.images:
            return {}
        return {
            "f1_foreground": self.foreground / (self.images * UNIT),
            "f1_background": self.background / (self.images * UNIT),
            "piou": self.intersection / self.union if self.object_pixels else float("nan"),
        }


class PixelPrecisionRecall(MergeableState):
    """Precision, recall and IoU over all pixels of a data set, at 1000 thresholds (Choe et al., CVPR 2020).

    It holds two histograms, however many images there are. Scores are compared at a resolution of 1/1000.
    """

    sums = ("object_pixels", "other_pixels")

    def __init__(self) -> None:
        self.object_pixels = np.zeros(BINS, dtype=np.int64)
        self.other_pixels = np.zeros(BINS, dtype=np.int64)

    def update(self, scores: np.ndarray, target: np.ndarray) -> None:
        """Add an image: scores in [0, 1] and boolean object pixels, both `[H, W]`."""
        bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
        self.object_pixels += np.bincount(bins[target], minlength=BINS)
        self.other_pixels += np.bincount(bins[~target], minlength=BINS)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return precision and recall for thresholds from high to low (0.999, ..., 0.001, 0), `[1000]` each."""
        found = self.object_pixels[::-1].cumsum()
        marked = found + self.other_pixels[::-1].cumsum()
        precision = found / np.maximum(marked, 1)
        return precision, found / max(int(self.object_pixels.sum()), 1)

    def average_precision(self) -> float:
        """Compute PxAP, the area under precision over recall, in [0, 1]; NaN without object pixels."""
        if not self.object_pixels.any():
            return float("nan")
        precision, recall = self.curve()
        return float((precision * np.diff(recall, prepend=0.0)).sum())

    def iou(self) -> np.ndarray:
        """Compute pIoU, TP / (TP + FP + FN) over all pixels, for the thresholds of `curve`, `[1000]`; 0 for 0 / 0."""
        found = self.object_pixels[::-1].cumsum()
        union = int(self.object_pixels.sum()) + self.other_pixels[::-1].cumsum()
        return found / np.maximum(union, 1)

    def compute(self) -> dict[str, float]:
        """Return `pxap`, `max_piou` (the best over the thresholds) and the highest threshold that reaches it.

        All are NaN without object pixels; the result is empty before the first image.
        """
        if not self.object_pixels.any():
            names = ("pxap", "max_piou", "max_piou_threshold") if self.other_pixels.any() else ()
            return dict.fromkeys(names, float("nan"))
        iou = self.iou()
        best = int(iou.argmax())
        return {
            "pxap": self.average_precision(),
            "max_piou": float(iou[best]),
            "max_piou_threshold": (BINS - 1 - best) / BINS,
        }
