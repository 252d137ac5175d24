"""Checks of settings, with the same wording for every part of the method."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence

LARGEST = 1e12  # of any setting
MAX_SIDE = 2**13  # pixels
MAX_SCALE = 16  # of the classifier's input, times the image, far beyond any use
MAX_SCALES, SMALLEST_SCALE, LARGEST_SCALE = 8, 0.1, 4.0  # of images in evaluation
MAX_CHANNELS = 4096


def check_number(name: str, value: float) -> float:
    """Check that a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} must be a finite number, got {value!r:.80}")
    return value


def check_positive(name: str, value: float) -> float:
    """Check that a value is a finite number over 0."""
    if not check_number(name, value) > 0:
        raise ValueError(f"{name} must be over 0, got {value!r}")
    return float(value)


def check_not_negative(name: str, value: float) -> float:
    """Check that a value is a finite number of 0 or more."""
    if check_number(name, value) < 0:
        raise ValueError(f"{name} must be a finite number of 0 or more, got {value!r}")
    return value


def check_count(name: str, value: int) -> int:
    """Check that a value is an integer of 1 or more (including NumPy's), and return it as `int`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
    return operator.index(value)


def check_channels(name: str, value: int) -> int:
    """Check that a value is a number of channels (including NumPy's), and return it as `int`."""
    if check_count(name, value) > MAX_CHANNELS:
        raise ValueError(f"{name} must be at most {MAX_CHANNELS}, got {value}")
    return operator.index(value)


def check_flag(name: str, value: bool) -> bool:
    """Check that a value is a boolean; a string such as "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_choice(name: str, value: str, known: Sequence[str | None]) -> str:
    """Check that a value is one of the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")
    return value


def check_sigma(name: str, value: float) -> float:
    """Check that a value is a threshold on a map."""
    if not 0 <= check_number(name, value) <= 1:
        raise ValueError(f"{name} is a threshold on a map in [0, 1], got {value!r}")
    return float(value)


def check_threshold(name: str, value: float) -> float:
    """Check that a value is a threshold that cuts a mask in two.

    Raises:
        ValueError: it is not a number, or not in (0, 1).
    """
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} cuts a mask with values in [0, 1], it must be over 0 and below 1, got {value!r}")
    return float(value)


def check_share(name: str, value: float) -> float:
    """Check that a value is a share or probability.

    Raises:
        ValueError: it is not a number, or not in [0, 1].
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    return float(value)


def check_input_scale(name: str, value: float | tuple[int, int]) -> float | tuple[int, int]:
    """Check that a value is the size of an input: a share of the image, or `(height, width)` in pixels."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2 or any(
            isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= MAX_SIDE for v in value
        ):
            raise ValueError(f"{name} must be a number, or (height, width) in pixels, got {value!r}")
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= MAX_SCALE:
        raise ValueError(
            f"{name} must be a share over 0, up to {MAX_SCALE}, or (height, width) in pixels, got {value!r}"
        )
    return float(value)


def check_scales(name: str, scales: Sequence[float]) -> tuple[float, ...]:
    """Check sizes relative to the image's own, which must be among them.

    Raises:
        TypeError: not a list.
        ValueError: not numbers, one out of range, one twice, too many, or none that is 1.
    """
    if not isinstance(scales, (list, tuple)):
        raise TypeError(f"{name} must be a list of numbers, got {scales!r:.80}")
    for scale in scales:
        check_number(name, scale)
    found = tuple(float(scale) for scale in scales)
    in_range = all(SMALLEST_SCALE <= scale <= LARGEST_SCALE for scale in found)
    if not in_range or len(set(found)) < len(found) or len(found) > MAX_SCALES:
        raise ValueError(
            f"{name} must be up to {MAX_SCALES} different numbers from {SMALLEST_SCALE} to {LARGEST_SCALE:g}, got "
            f"{scales!r:.80}"
        )
    if 1 not in found:
        raise ValueError(f"{name} must have 1, the image as it is, among them, got {scales!r:.80}")
    return found


def check_empty_classes(indices: Sequence[int], num_classes: int, task: str) -> list[int]:
    """Check class indices, and return them sorted, without duplicates.

    Raises:
        TypeError: not a list of integers.
        ValueError: an index out of range, all classes, or a task whose classes are not mutually exclusive.
    """
    if not isinstance(indices, (list, tuple)) or any(type(index) is not int for index in indices):
        raise TypeError(f"empty_classes must be a list of class indices, got {indices!r:.80}")
    if indices and task != "multiclass":
        raise ValueError("empty_classes is for one class per image; a multilabel image may have no class at all")
    found = sorted(set(indices))
    if found and (found[0] < 0 or found[-1] >= num_classes or len(found) == num_classes):
        raise ValueError(
            f"empty_classes must be class indices from 0 to {num_classes - 1} and leave one of them out, got {found}"
        )
    return found
