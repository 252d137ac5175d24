"""Weight initializations of a backbone other than timm's own."""

from __future__ import annotations

from torch import nn


def he_fan_out(module: nn.Module) -> None:
    """Initialize every convolution by its fan-out (He et al., ICCV 2015), and BatchNorm as the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


INITIALIZATIONS = {"he_fan_out": he_fan_out}
