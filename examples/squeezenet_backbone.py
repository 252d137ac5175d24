"""SqueezeNet 1.0 of torchvision as a backbone; an example of a plugin for the command line.

    minmax-entropy train --plugin examples/squeezenet_backbone.py --model wsl_squeezenet1_0 --pretrained --data ...

ImageNet weights are read from the `.safetensors` file that the environment variable SQUEEZENET_WEIGHTS names.
"""

import os

import safetensors.torch
import torch
import torchvision
from torch import nn

import minmax_entropy

# Standard deviation of the pretrained features on photographs: the network has no normalization, and heads expect
# features of order 1.
FEATURE_SCALE = 38.0


class SqueezeNetFeatures(nn.Module):
    """Features `[B, 512, ~H/16, ~W/16]` (Iandola et al., arXiv 1602.07360), scaled to order 1."""

    num_features, reduction = 512, 16

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images) / FEATURE_SCALE


@minmax_entropy.register_backbone
def squeezenet1_0(pretrained: bool = False, in_chans: int = 3) -> nn.Module:
    """torchvision's SqueezeNet 1.0 without its classifier."""
    if in_chans != 3:
        raise ValueError("squeezenet1_0 takes three channels")
    net = torchvision.models.squeezenet1_0()
    if pretrained:
        net.load_state_dict(safetensors.torch.load_file(os.environ["SQUEEZENET_WEIGHTS"]))
    return SqueezeNetFeatures(net.features)
