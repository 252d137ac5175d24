"""A user's own module as a backbone."""

from __future__ import annotations

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from minmax_entropy.backbones.sizes import ImageSizes, as_pair

PROBE_SIZE = 128


class ModuleBackbone(nn.Module):
    """Wrap a module that maps `[B, C, H, W]` to `[B, D, h, w]`.

    `num_features` and `reduction` are taken from the module's attributes of that name, or else measured with one
    forward pass of a blank 128 x 128 image. `data_config` (mean, std, ...) is ImageNet's unless the module has one.

    Raises:
        ValueError: the module does not give a feature map `[B, D, h, w]`.
    """

    def __init__(self, net: nn.Module, in_chans: int = 3, img_size: int | tuple[int, int] | None = None) -> None:
        super().__init__()
        self.net = net
        self.in_chans = in_chans
        self.data_config = {
            "input_size": (in_chans, 224, 224),
            "mean": tuple(IMAGENET_DEFAULT_MEAN),
            "std": tuple(IMAGENET_DEFAULT_STD),
            "interpolation": "bilinear",
            **getattr(net, "data_config", {}),
        }
        if img_size is not None:
            self.data_config["input_size"] = (in_chans, *as_pair(img_size))
        self.num_features = getattr(net, "num_features", None)
        self.reduction = getattr(net, "reduction", None)
        if self.num_features is None or self.reduction is None:
            channels, side = self._probe()
            self.num_features = channels
            self.reduction = max(1, round(PROBE_SIZE / side))
        self.feature_info = [{"num_chs": self.num_features, "reduction": self.reduction, "module": ""}]
        self.sizes = ImageSizes(self.reduction)

    @torch.no_grad()
    def _probe(self) -> tuple[int, int]:
        modes = {module: module.training for module in self.net.modules()}
        weight = next(self.net.parameters(), torch.zeros(()))
        blank = torch.zeros(1, self.in_chans, PROBE_SIZE, PROBE_SIZE, dtype=weight.dtype, device=weight.device)
        self.net.eval()
        try:
            features = self.net(blank)
        except Exception as error:
            raise ValueError(
                f"the backbone {type(self.net).__name__} fails on an image of shape {tuple(blank.shape)}: {error}; "
                "give the module the attributes num_features and reduction if it needs another size"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not isinstance(features, Tensor) or features.ndim != 4:
            shape = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise ValueError(
                f"the backbone {type(self.net).__name__} must map images [B, C, H, W] to features [B, D, h, w], "
                f"it gave {shape} for {tuple(blank.shape)}"
            )
        return features.shape[1], features.shape[3]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
