"""SqueezeNet 1.0 of torchvision as a backbone: an example of a plugin for the command line.

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
    """Features `[B, 512, ~H/16, ~W/16]` (Iandola et al., arXiv 1602.07360), scaled to order 1.

    With an output stride of 8 the last pooling layer keeps the resolution, and later convolutions are dilated by 2
    (Chen et al., "DeepLab", arXiv 1606.00915), which gives a finer map with the same weights.
    """

    num_features = 512

    def __init__(self, features: nn.Sequential, output_stride: int = 16) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16, got {output_stride!r}")
        self.features = features
        self.reduction = output_stride
        if output_stride == 8:
            last = max(place for place, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d))
            features[last] = nn.MaxPool2d(3, stride=1, padding=1)
            for layer in features[last + 1 :].modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images) / FEATURE_SCALE


@minmax_entropy.register_backbone
def squeezenet1_0(pretrained: bool = False, in_chans: int = 3, output_stride: int = 16) -> nn.Module:
    """Build torchvision's SqueezeNet 1.0 without its classifier."""
    if in_chans != 3:
        raise ValueError("squeezenet1_0 takes three channels")
    net = torchvision.models.squeezenet1_0()
    if pretrained:
        net.load_state_dict(safetensors.torch.load_file(os.environ["SQUEEZENET_WEIGHTS"]))
    return SqueezeNetFeatures(net.features, output_stride)
