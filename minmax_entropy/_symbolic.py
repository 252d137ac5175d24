"""Arithmetic on sizes that may be symbolic, while `torch.export` traces a graph for images of any size.

Python's `round`, `int` and `max` would fix such a size to its value in the example.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

# Largest denominator of shares as ratios of whole numbers: graphs have whole numbers, but no rounding.
LARGEST_DENOMINATOR = 10_000


def is_symbolic(size: int) -> bool:
    """Return whether a size is symbolic: its value is not known before the graph runs."""
    return isinstance(size, torch.SymInt)


def rounded_quotient(size: int, divisor: int) -> int:
    """Return `round(size / divisor)`, half to even, for whole numbers of 0 or more."""
    return size if divisor == 1 else (2 * size + divisor - 1 + size // divisor % 2) // (2 * divisor)


def rounded_share(share: float, size: int) -> int:
    """Return `round(share * size)`, half to even; for a symbolic size, with the nearest ratio of whole numbers."""
    if not is_symbolic(size):
        return round(share * size)
    ratio = Fraction(share).limit_denominator(LARGEST_DENOMINATOR)
    return rounded_quotient(ratio.numerator * size, ratio.denominator)


def truncated_share(share: float, size: int) -> int:
    """Return `floor(share * size)`; for a symbolic size, with the nearest ratio of whole numbers."""
    if not is_symbolic(size):
        return math.trunc(share * size)
    ratio = Fraction(share).limit_denominator(LARGEST_DENOMINATOR)
    return ratio.numerator * size // ratio.denominator
