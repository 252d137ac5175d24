"""Pixel metrics: Dice and pixel average precision."""

from __future__ import annotations

import numpy as np

BINS = 1000


def dice(prediction: np.ndarray, target: np.ndarray, empty: float = 1.0) -> float:
    """Dice coefficient, `2 |A and B| / (|A| + |B|)`, in [0, 1].

    F1+ of an image is `dice(mask >= 0.5, target)`, F1- is that of the complements.

    Args:
        prediction, target: boolean arrays of one shape.
        empty: value where both are empty.

    Raises:
        ValueError: the shapes differ.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape")
    total = int(prediction.sum()) + int(target.sum())
    return 2 * int((prediction & target).sum()) / total if total else empty


class PixelPrecisionRecall:
    """Pixel precision and recall over all pixels of a data set, at 1000 thresholds (Choe et al., CVPR 2020).

    Holds two histograms, whatever the number of images. Scores are compared at a resolution of 1/1000.
    """

    def __init__(self) -> None:
        self.object_pixels = np.zeros(BINS, dtype=np.int64)
        self.other_pixels = np.zeros(BINS, dtype=np.int64)

    def update(self, scores: np.ndarray, target: np.ndarray) -> None:
        """Count an image: scores in [0, 1] and boolean object pixels, both `[H, W]`."""
        bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
        self.object_pixels += np.bincount(bins[target], minlength=BINS)
        self.other_pixels += np.bincount(bins[~target], minlength=BINS)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall for thresholds from high to low, `[1000]` each."""
        found = self.object_pixels[::-1].cumsum()
        marked = found + self.other_pixels[::-1].cumsum()
        precision = found / np.maximum(marked, 1)
        return precision, found / max(int(self.object_pixels.sum()), 1)

    def average_precision(self) -> float:
        """PxAP: area under precision over recall, in [0, 1]; NaN without object pixels."""
        if not self.object_pixels.any():
            return float("nan")
        precision, recall = self.curve()
        return float((precision * np.diff(recall, prepend=0.0)).sum())
