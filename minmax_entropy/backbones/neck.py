"""Necks, which merge several feature levels into one map at the stride of the finest."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._checks import check_choice, check_count

FINEST_STRIDE = 8  # by default, a neck starts at the first level of this stride or more
DEPTHS = 4  # levels that are merged where all have the same stride


class FeaturePyramidNeck(nn.Module):
    """Light feature pyramid: the top-down path of Lin et al. (CVPR 2017), finest level only.

    Each level passes through a 1x1 convolution; starting from the coarsest, the sum so far is resized to the next finer
    level and added to it; a 3x3 convolution smooths the result. BatchNorm follows each convolution: when trained from
    scratch, GroupNorm and no normalization were far worse (docs/results/resolution.md).

    Args:
        in_channels: channels of the levels, finest first.
        channels: channels D of the result; when trained from scratch, 64 was better than 256, and cheaper.

    Shapes: levels `[B, D_i, h_i, w_i]`, finest first, to `[B, channels, h_0, w_0]`.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 64) -> None:
        super().__init__()
        self.channels = check_count("channels", channels)
        self.laterals = nn.ModuleList(_conv_norm(count, self.channels, 1) for count in in_channels)
        self.smooth = nn.Sequential(_conv_norm(self.channels, self.channels, 3), nn.ReLU(inplace=True))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        merged = coarsest
        for level in reversed(finer):
            merged = level + F.interpolate(merged, size=level.shape[-2:], mode="bilinear", align_corners=True)
        return self.smooth(merged)


def _conv_norm(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


NECKS = {"fpn": FeaturePyramidNeck}


def create_neck(spec: str | dict, in_channels: list[int]) -> nn.Module:
    options = dict(spec) if isinstance(spec, dict) else {"name": spec}
    name = options.pop("name", None)
    check_choice("neck", name, tuple(NECKS))
    try:
        return NECKS[name](in_channels, **options)
    except TypeError as error:
        raise TypeError(f"neck {name!r}: {error}") from error


def choose_levels(name: str, strides: list[int], out_index: int | None, neck: str | dict | None) -> tuple[int, ...]:
    """Return the indices of the feature levels that are read, finest first."""
    count = len(strides)
    if out_index is not None and (isinstance(out_index, bool) or not isinstance(out_index, int)):
        raise ValueError(f"out_index must be an integer, got {out_index!r}")
    if out_index is not None and not -count <= out_index < count:
        raise ValueError(
            f"{name} has {count} feature levels (strides {strides}), out_index must be in [{-count}, {count}), "
            f"got {out_index}"
        )
    if neck is None:
        return (count - 1 if out_index is None else out_index % count,)
    if out_index is None:
        first = next((index for index, stride in enumerate(strides) if stride >= FINEST_STRIDE), count - 1)
    else:
        first = out_index % count
    last_of = {stride: index for index, stride in enumerate(strides) if index >= first}
    if len(last_of) > 1:
        return tuple(sorted(last_of.values()))
    if out_index is None and len(set(strides)) == 1:
        first = max(count // DEPTHS - 1, 0)  # the last of each quarter of the depth
    number = min(DEPTHS, count - first)
    return tuple(round(first + step * (count - 1 - first) / max(number - 1, 1)) for step in range(number))
