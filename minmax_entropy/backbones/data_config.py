"""Preprocessing that a backbone expects: size, mean, std, interpolation and crop, as in timm's cards."""

from __future__ import annotations

import itertools

from minmax_entropy._checks import MAX_CHANNELS, MAX_SIDE, check_choice, check_count, check_number

SMALLEST_STD = 1e-6
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming", "random")
CROP_MODES = ("center", "squash", "border", "corner")
_DATA_CONFIG = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "resize")
# How images are resized at evaluation: the shorter side to that of `input_size`; likewise, but smaller images only, as
# in the authors' implementation; or not at all, as there.
RESIZES = ("short_side", "reference", "reference_native")


def check_data_config(config: dict) -> None:
    """Check that preprocessing settings have known keys and valid values.

    Raises:
        ValueError, TypeError: an unknown key or an invalid value; the message names the key.
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


def per_channel(data_config: dict, in_chans: int) -> dict:
    """Fit mean and std to the channels: averaged for one, else repeated, as timm does with the first convolution."""
    config = {**data_config, "input_size": (in_chans, *data_config["input_size"][-2:])}
    for key in ("mean", "std"):
        values = tuple(config[key]) if isinstance(config[key], (tuple, list)) else (config[key],)
        if in_chans == 1:
            config[key] = (sum(values) / len(values),)
        else:
            config[key] = tuple(itertools.islice(itertools.cycle(values), in_chans))
    return config
