"""Heads that pool class activation maps: average (CAM), maximum, log-sum-exp, and their base class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._checks import check_count, check_number
from minmax_entropy._symbolic import is_symbolic


def average_pool(maps: Tensor) -> Tensor:
    """Average over the positions (CAM; Zhou et al., CVPR 2016): `[B, K, h, w]` to `[B, K]`."""
    return maps.mean(dim=(2, 3))


def max_pool(maps: Tensor) -> Tensor:
    """Take the maximum over the positions (Oquab et al., CVPR 2015): `[B, K, h, w]` to `[B, K]`."""
    return maps.amax(dim=(2, 3))


def lse_pool(maps: Tensor, r: float = 10.0) -> Tensor:
    """Compute `log(mean(exp(r A))) / r`, log-sum-exp (Pinheiro and Collobert, CVPR 2015): `[B, K, h, w]` to `[B, K]`.

    It lies between the mean (small `r`) and the maximum (large `r`).
    """
    positions = maps.shape[2] * maps.shape[3]
    if is_symbolic(positions):
        log_positions = torch.logsumexp(torch.zeros_like(maps), dim=(2, 3))  # [B, K], all the same
    else:
        log_positions = math.log(positions)
    return (torch.logsumexp(r * maps, dim=(2, 3)) - log_positions) / r


class ClassMapHead(nn.Module):
    """Head of a 1x1 convolution to `modalities` maps per class, their mean, and the subclass's `pool` to scores.

    The convolution has `K * M` output channels, class-major (`k * M + m`). The mean over the modalities is linear, so
    it is taken over the weights: the `K * M` maps are never made. Initialization is PyTorch's default for convolutions.

    Args:
        in_features: channels D of the features.
        num_classes: K.
        modalities: M, maps per class.
    """

    def __init__(self, in_features: int, num_classes: int, modalities: int = 1) -> None:
        super().__init__()
        modalities = check_count("modalities", modalities)
        self.num_classes = num_classes
        self.modalities = modalities
        self.to_modalities = nn.Conv2d(in_features, num_classes * modalities, kernel_size=1)

    def class_maps(self, features: Tensor) -> Tensor:
        """Map `[B, D, h, w]` to `[B, K, h, w]`."""
        weight, bias = self.to_modalities.weight, self.to_modalities.bias
        if self.modalities > 1:
            weight = weight.unflatten(0, (self.num_classes, self.modalities)).mean(dim=1)
            bias = bias.unflatten(0, (self.num_classes, self.modalities)).mean(dim=1)
        return F.conv2d(features, weight, bias)

    def pool(self, maps: Tensor) -> Tensor:
        """Pool `[B, K, h, w]` to `[B, K]`."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, D, h, w]` to scores `[B, K]` and maps `[B, K, h, w]`."""
        maps = self.class_maps(features)
        return self.pool(maps), maps


class AverageHead(ClassMapHead):
    """Head that averages class maps (Zhou et al., "Learning Deep Features for Discriminative Localization")."""

    def pool(self, maps: Tensor) -> Tensor:
        return average_pool(maps)


class MaxHead(ClassMapHead):
    """Head that takes the maximum of class maps (Oquab et al., "Is object localization for free?")."""

    def pool(self, maps: Tensor) -> Tensor:
        return max_pool(maps)


class LSEHead(ClassMapHead):
    """Head that pools class maps by log-sum-exp with sharpness `r` (Pinheiro and Collobert, CVPR 2015)."""

    def __init__(self, in_features: int, num_classes: int, modalities: int = 1, r: float = 10.0) -> None:
        super().__init__(in_features, num_classes, modalities)
        check_number("r", r)
        if r <= 0:
            raise ValueError(f"r must be over 0, got {r!r}")
        self.r = float(r)

    def pool(self, maps: Tensor) -> Tensor:
        return lse_pool(maps, self.r)
