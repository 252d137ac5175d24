"""Checks of settings, with one wording for every part of the method."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence

LARGEST = 1e12  # of any setting
MAX_SIDE = 2**13  # pixels
MAX_SCALE = 16  # of the classifier's input, times the image, far beyond any use
MAX_SCALES, SMALLEST_SCALE, LARGEST_SCALE = 8, 0.1, 4.0  # of images in evaluation
MAX_CHANNELS = 4096
SMALLEST_STD = 1e-6
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming", "random")
CROP_MODES = ("center", "squash", "border", "corner")
_DATA_CONFIG = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "resize")
# What brings an image to the network's size at evaluation: its shorter side becomes that of `input_size`; only if it is
# shorter, as in the authors' implementation; never, likewise.
RESIZES = ("short_side", "reference", "reference_native")


def check_number(name: str, value: float) -> None:
    """Refuse what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} must be a finite number, got {value!r:.80}")


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


def check_mask(sigma: float, omega: float) -> None:
    """Refuse settings of the mask that can't be.

    Raises:
        ValueError: with the setting.
    """
    check_number("mask_sigma", sigma)
    check_number("mask_omega", omega)
    if not 0 <= sigma <= 1:
        raise ValueError(f"mask_sigma is a threshold on a map in [0, 1], got {sigma!r}")
    if not omega > 0:
        raise ValueError(f"mask_omega must be over 0, got {omega!r}")


def check_threshold(name: str, value: float) -> None:
    """Refuse what does not cut a mask in two.

    Raises:
        ValueError: it is no number, or not in (0, 1).
    """
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} cuts a mask with values in [0, 1], it must be over 0 and below 1, got {value!r}")


def check_share(name: str, value: float) -> None:
    """Refuse what is no share or probability.

    Raises:
        ValueError: it is no number, or not in [0, 1].
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def check_scales(name: str, scales: Sequence[float]) -> tuple[float, ...]:
    """Sizes as shares of the image's own, which is one of them.

    Raises:
        TypeError: no list.
        ValueError: no numbers, one out of range, one twice, too many, or none that is 1.
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
    """Sorted class indices, each once.

    Raises:
        TypeError: no list of integers.
        ValueError: an index that there is not, all of them, or a task without classes that exclude each other.
    """
    if not isinstance(indices, (list, tuple)) or any(type(index) is not int for index in indices):
        raise TypeError(f"empty_classes must be a list of class indices, got {indices!r:.80}")
    if indices and task != "multiclass":
        raise ValueError("empty_classes is for one class an image; a multilabel image may have no class at all")
    found = sorted(set(indices))
    if found and (found[0] < 0 or found[-1] >= num_classes or len(found) == num_classes):
        raise ValueError(
            f"empty_classes must be class indices from 0 to {num_classes - 1} and leave one of them out, got {found}"
        )
    return found


def check_data_config(config: dict) -> None:
    """Refuse settings of the preprocessing that timm's `data_config` does not have, or values that can't be.

    Raises:
        ValueError, TypeError: with the key.
    """
    if not isinstance(config, dict):
        raise TypeError(f"data_config must be a dictionary, got {config!r:.80}")
    unknown = [key for key in config if key not in _DATA_CONFIG]
    if unknown:
        raise ValueError(f"data_config has no {', '.join(map(repr, unknown))}; its keys are {_DATA_CONFIG}")
    for key in ("mean", "std"):
        values = config.get(key, 1.0)
        values = values if isinstance(values, (tuple, list)) else (values,)
        for value in values:
            check_number(f"data_config's {key}", value)
        if not 1 <= len(values) <= MAX_CHANNELS or (key == "std" and min(values) < SMALLEST_STD):
            raise ValueError(f"data_config's {key} must be a number for each channel, std over 0, got {values!r:.80}")
    size = config.get("input_size", (1, 1, 1))
    if not isinstance(size, (tuple, list)) or len(size) != 3:
        raise ValueError(f"data_config's input_size must be (channels, height, width), got {size!r}")
    for side in size[1:]:
        if check_count("data_config's input_size", side) > MAX_SIDE:
            raise ValueError(f"data_config's input_size has at most {MAX_SIDE} pixels a side, got {size!r}")
    check_choice("data_config's resize", config.get("resize", RESIZES[0]), RESIZES)
    for key, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        check_choice(f"data_config's {key}", config.get(key, known[0]), known)
    crop = config.get("crop_pct", 1.0)
    check_number("data_config's crop_pct", crop)
    if crop <= 0:
        raise ValueError(f"data_config's crop_pct must be over 0, got {crop!r}")
