"""A user's own module as a backbone."""

from __future__ import annotations

from timm.data import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from minmax_entropy.backbones.sizes import ImageSizes, Size, as_pair
from minmax_entropy.backbones.unused import unused_parameters

PROBE_SIZE = 128


class ModuleBackbone(nn.Module):
    """Backbone around a module that maps `[B, C, H, W]` to `[B, D, h, w]`.

    `num_features` and `reduction` are the module's attributes of the same name, or else measured on a blank 128 x 128
    image; parameters that do not contribute to its output are then frozen, as in `TimmBackbone`. `data_config` (mean,
    std, ...) defaults to ImageNet's, and `sizes` (an `ImageSizes`) to any size, unless the module has its own.

    Raises:
        ValueError: the module does not return a feature map `[B, D, h, w]`.
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
            "crop_pct": DEFAULT_CROP_PCT,
            **getattr(net, "data_config", {}),
        }
        if img_size is not None:
            self.data_config["input_size"] = (in_chans, *as_pair(img_size))
        self.num_features = getattr(net, "num_features", None)
        self.reduction = getattr(net, "reduction", None)
        if self.num_features is None or self.reduction is None:
            channels, stride = self._probe()
            self.num_features = self.num_features or channels
            self.reduction = self.reduction or stride
        self.feature_info = [{"num_chs": self.num_features, "reduction": self.reduction, "module": ""}]
        self.sizes = getattr(net, "sizes", None) or ImageSizes(self.reduction)

    def _probe(self) -> tuple[int, int]:
        """Measure channels and stride of the features, and freeze parameters that do not contribute to them."""
        shape = (1, self.in_chans, PROBE_SIZE, PROBE_SIZE)
        name = type(self.net).__name__
        try:
            features, unused = unused_parameters(self.net, self.in_chans, (PROBE_SIZE, PROBE_SIZE))
        except Exception as error:
            raise ValueError(
                f"the backbone {name} fails on an image of shape {shape}: {error}; "
                "give the module the attributes num_features and reduction if it needs another size"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 4:
            found = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise ValueError(
                f"the backbone {name} must map images [B, C, H, W] to features [B, D, h, w], "
                f"it gave {found} for {shape}"
            )
        for parameter in unused:
            self.net.get_parameter(parameter).requires_grad_(False)
        return features.shape[1], max(1, round(PROBE_SIZE / features.shape[3]))

    def set_input_size(self, size: Size) -> None:
        """Set the expected image size to `(height, width)`.

        Raises:
            ValueError: the module takes images of another, fixed size.
        """
        if self.sizes.fixed not in (None, size):
            raise ValueError(f"{type(self.net).__name__} takes images of {self.sizes}, not of {size}")
        self.data_config["input_size"] = (self.in_chans, *size)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
