"""Any timm model as a backbone that gives one feature map."""

from __future__ import annotations

import math

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn


class TimmBackbone(nn.Module):
    """A timm model, cut off after one feature level: images `[B, C, H, W]` to features `[B, D, h, w]`.

    Convolutional networks, channels-last ones and token sequences are all read through timm's
    `forward_intermediates`; what comes after the level is pruned where timm can do so.

    Args:
        name: timm model name, with or without a tag.
        pretrained: load timm's weights from the Hugging Face Hub.
        in_chans: channels of the images; timm adapts the pretrained first convolution.
        img_size: size the architecture is built for, `(height, width)` or a number, where it takes one (transformers).
        out_index: feature level, an index into timm's `feature_info`.
        kwargs: passed to `timm.create_model` (`output_stride`, `drop_path_rate`, ...).

    Attributes:
        num_features: channels D.
        reduction: stride of the features in pixels.
        data_config: mean, std, input size, interpolation and crop of the weights.
        size_multiple: pixels; image sides that are multiples of it suit the architecture.
        fixed_size: the one `(height, width)` the architecture takes, or None where it takes any.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        out_index: int = -1,
        **kwargs,
    ) -> None:
        super().__init__()
        size = None if img_size is None else as_pair(img_size)
        self.net, takes_any_size = _create(
            name, size, dict(pretrained=pretrained, in_chans=in_chans, num_classes=0, **kwargs)
        )
        self.in_chans = in_chans
        self.data_config = resolve_model_data_config(self.net)
        if size is not None:
            self.data_config["input_size"] = (in_chans, *size)
        levels = len(self.net.feature_info)
        if not -levels <= out_index < levels:
            raise ValueError(f"{name} has {levels} feature levels, out_index must be in [{-levels}, {levels})")
        self.level = out_index % levels
        is_last = self.level == levels - 1
        info = self.net.feature_info[self.level]
        self.num_features = info.get("num_chs_norm", info["num_chs"]) if is_last else info["num_chs"]
        self.reduction = info["reduction"]
        self._norm = {"norm": True} if is_last else {}
        if hasattr(self.net, "prune_intermediate_layers"):
            self.net.prune_intermediate_layers([self.level], prune_norm=not is_last, prune_head=True)
        self._multiple = _side_multiple(self.net, self.reduction)
        self.size_multiple = math.lcm(self.reduction, *(self._multiple or ()))
        self.fixed_size = None if takes_any_size else tuple(self.data_config["input_size"][-2:])

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The size closest to `(height, width)` that the architecture takes."""
        if self.fixed_size is not None:
            return self.fixed_size
        if self._multiple is None:
            return max(height, self.reduction), max(width, self.reduction)
        rows, columns = self._multiple
        return max(round(height / rows), 1) * rows, max(round(width / columns), 1) * columns

    def forward(self, images: Tensor) -> Tensor:
        options = dict(indices=[self.level], output_fmt="NCHW", intermediates_only=True)
        try:
            return self.net.forward_intermediates(images, **options, **self._norm)[0]
        except AssertionError:  # a few families (hiera) refuse to normalize intermediate features
            if not self._norm:
                raise
            self._norm = {}
            return self.net.forward_intermediates(images, **options)[0]


def _create(name: str, size: tuple[int, int] | None, options: dict) -> tuple[nn.Module, bool]:
    """A timm model, and whether it takes images of other sizes than it is built for.

    Families differ in the keywords they know: a position embedding that follows the image (`dynamic_img_size`) is
    asked for first, then a size at construction (`img_size`), then neither (convolutional networks).
    """
    dynamic = {} if "dynamic_img_size" in options else {"dynamic_img_size": True}
    sized = {} if size is None else {"img_size": size}
    for extra in ({**dynamic, **sized}, sized, {}):
        try:
            net = timm.create_model(name, **options, **extra)
        except TypeError as unknown_keyword:
            error = unknown_keyword
            continue
        except AssertionError as refused:
            raise ValueError(f"timm's {name} refuses {extra | options}: {refused}") from refused
        return net, "dynamic_img_size" in {**options, **extra} or not net.pretrained_cfg.get("fixed_input_size", False)
    raise error


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
        raise ValueError(f"img_size must be a number of pixels or (height, width), got {size!r}")
    return tuple(pair)


def _side_multiple(net: nn.Module, reduction: int) -> tuple[int, int] | None:
    """What image sides must be a multiple of: patches, whole strides where levels are fused, blocks of attention."""
    embedding = getattr(net, "patch_embed", None) or getattr(getattr(net, "encoder", None), "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if patch is not None and not getattr(embedding, "dynamic_img_pad", False):
        return as_pair(patch)
    if isinstance(net, (timm.models.DLA, timm.models.HighResolutionNet)):
        return as_pair(reduction)
    blocked = [layer for layer in net.modules() if type(layer).__name__ in ("HaloAttn", "BilinearAttnTransform")]
    return as_pair(reduction * max(layer.block_size for layer in blocked)) if blocked else None
