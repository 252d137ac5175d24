"""Arithmetic on sizes that may be symbols, while `torch.export` traces a graph for images of any size.

Python's `round`, `int` and `max` would fix such a size to its value in the example.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

# Shares are written as ratios of whole numbers up to this: graphs have whole numbers without rounding.
LARGEST_DENOMINATOR = 10_000


def is_symbolic(size: int) -> bool:
    """Return whether a size is a symbol: its value is not known before the graph runs."""
    return isinstance(size, torch.SymInt)


def rounded_quotient(size: int, divisor: int) -> int:
    """Return `round(size / divisor)`, half to even, of whole numbers of 0 or more."""
    return size if divisor == 1 else (2 * size + divisor - 1 + size // divisor % 2) // (2 * divisor)


def rounded_share(share: float, size: int) -> int:
    """Return `round(share * size)`, half to even; of a symbol with the nearest ratio of whole numbers as share."""
    if not is_symbolic(size):
        return round(share * size)
    ratio = Fraction(share).limit_denominator(LARGEST_DENOMINATOR)
    return rounded_quotient(ratio.numerator * size, ratio.denominator)


def truncated_share(share: float, size: int) -> int:
    """Return `floor(share * size)`; of a symbol with the nearest ratio of whole numbers as share."""
    if not is_symbolic(size):
        return math.trunc(share * size)
    ratio = Fraction(share).limit_denominator(LARGEST_DENOMINATOR)
    return ratio.numerator * size // ratio.denominator
