"""Classification metrics: top-1 and top-5 error."""

from __future__ import annotations

import operator

import numpy as np

from minmax_entropy.metrics.state import MergeableState

TOP = 5


def target_rank(scores: np.ndarray, target: int) -> int:
    """Return the rank of the true class: 0 for the highest score. Among equal scores, the first counts as higher.

    Args:
        scores: one for each class, `[K]`.
        target: index of the true class.

    Raises:
        ValueError: the scores are not one row, have no such class, or hold NaN.

    >>> target_rank(np.array([0.2, 0.7, 0.1]), 0)
    1
    """
    scores = np.asarray(scores)
    if scores.ndim != 1 or not 0 <= target < len(scores):
        raise ValueError(f"scores [K] with a class {target} are expected, got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"scores hold NaN: {scores}")
    return int((scores > scores[target]).sum() + (scores[:target] == scores[target]).sum())


def resolve_rank(correct: bool | None, rank: int | None) -> tuple[bool | None, int | None]:
    """Return both as plain values, with `correct` derived from `rank` where it is not given.

    Raises:
        ValueError: the rank is not an integer of 0 or more, or the two contradict each other.
    """
    if rank is not None:
        if isinstance(rank, (bool, np.bool_)) or not hasattr(rank, "__index__") or rank < 0:
            raise ValueError(f"rank must be an integer of 0 or more, got {rank!r}")
        rank = operator.index(rank)
        if correct is not None and bool(correct) != (rank == 0):
            raise ValueError(f"correct={bool(correct)} and rank={rank} contradict each other: rank 0 is correct")
        correct = rank == 0
    return None if correct is None else bool(correct), rank


class ClassificationError(MergeableState):
    """Top-1 and top-5 error: shares of images whose true class is not the first, or not among the first five.

    Each is computed over the images where it is known: the top-5 error over those with a rank.
    """

    sums = ("images", "errors", "ranked", "top5_errors")

    def __init__(self) -> None:
        self.images = self.errors = self.ranked = self.top5_errors = 0

    def update(self, correct: bool | None = None, rank: int | None = None) -> None:
        """Add an image.

        Args:
            correct: whether the true class had the highest score.
            rank: rank of the true class, which determines `correct`; see `target_rank`.

        Raises:
            ValueError: the rank is not an integer of 0 or more, or the two contradict each other.
        """
        correct, rank = resolve_rank(correct, rank)
        if correct is not None:
            self.images += 1
            self.errors += not correct
        if rank is not None:
            self.ranked += 1
            self.top5_errors += rank >= TOP

    def compute(self) -> dict[str, float]:
        """Return `error` and `top5_error`, in [0, 1], where they are known."""
        result = {"error": self.errors / self.images} if self.images else {}
        return result | ({"top5_error": self.top5_errors / self.ranked} if self.ranked else {})
