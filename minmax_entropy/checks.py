"""Checks of settings, with one wording for every part of the method."""

from __future__ import annotations

import math
import operator


def check_number(name: str, value: float) -> None:
    """Refuse what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_count(name: str, value: int) -> int:
    """An integer of 1 or more (NumPy's are welcome) as `int`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
    return operator.index(value)


def check_flag(name: str, value: bool) -> None:
    """Refuse what is not a boolean; a text such as "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse what is not one of the known values."""
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")
