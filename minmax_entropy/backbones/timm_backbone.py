"""Any timm model as a backbone that returns one feature map."""

from __future__ import annotations

import copy
import dataclasses

from timm.data import resolve_model_data_config
from torch import Tensor, nn

from minmax_entropy.backbones.creation import SIZE_ERRORS, create_timm_model, not_buildable
from minmax_entropy.backbones.neck import choose_levels, create_neck
from minmax_entropy.backbones.sizes import ImageSizes, Size, as_pair, sizes_of
from minmax_entropy.backbones.unused import runs_without_values, unused_parameters

PROBE_SIDE = 128  # pixels; enough for every family that takes any size


class TimmBackbone(nn.Module):
    """A timm model, cut off after one feature level: images `[B, C, H, W]` to features `[B, D, h, w]`.

    Convolutional networks, channels-last networks and token sequences are all read through timm's
    `forward_intermediates`. Layers after that level are pruned where timm can do so; parameters that still do not
    contribute to the result are frozen, so that distributed training does not wait for them.

    Args:
        model: timm model name, with or without a tag, or a timm model, which is copied.
        pretrained: load timm's weights from the Hugging Face Hub.
        in_chans: channels of the images; timm adapts the pretrained first convolution.
        img_size: size the architecture is built for, `(height, width)` or a number, where it takes one (transformers).
        out_index: feature level, an index into timm's `feature_info`; with a neck, the finest of its levels. By default
            the deepest, including the layers that follow it in some families (efficientnet, rexnet, hrnet, ...): the
            map that timm's own classifier pools.
        neck: None, or "fpn" (a name or a dictionary of options with its `name`): a light top-down feature pyramid over
            the levels from `out_index` (by default the first of stride 8 or more) to the deepest; if all levels of
            the model have the same stride, it merges four, evenly spaced in depth.
        kwargs: passed to `timm.create_model` (`output_stride`, `drop_path_rate`, ...).

    Attributes:
        net: the timm model.
        num_features: channels D.
        reduction: stride of the features in pixels.
        feature_info: timm's levels, a list of dictionaries with `num_chs`, `reduction` and `module`.
        data_config: mean, std, input size, interpolation and crop of the weights.
        sizes: the image sizes that the architecture takes.

    Raises:
        ValueError: an image size, level or output stride that the architecture doesn't support; the message names
            the supported ones.
        TypeError: a keyword that timm does not accept.
    """

    def __init__(
        self,
        model: str | nn.Module,
        pretrained: bool = False,
        in_chans: int = 3,
        img_size: int | Size | None = None,
        out_index: int | None = None,
        neck: str | dict | None = None,
        **kwargs,
    ) -> None:
        super().__init__()
        size = None if img_size is None else as_pair(img_size)
        if isinstance(model, nn.Module):
            if kwargs:
                raise TypeError(f"a timm model that is built already takes no keywords, got {sorted(kwargs)}")
            self.net = copy.deepcopy(model)
            if size is not None and hasattr(model, "set_input_size"):
                self.net.set_input_size(img_size=size)
        else:
            self.net = create_timm_model(
                model, size, dict(pretrained=pretrained, in_chans=in_chans, num_classes=0, **kwargs)
            )
        self.name = model if isinstance(model, str) else type(model).__name__
        self.in_chans = in_chans
        self.feature_info = [dict(level) for level in self.net.feature_info]
        self.data_config = resolve_model_data_config(self.net)
        built_for = size or _built_for(self.net, isinstance(model, nn.Module)) or self.data_config["input_size"][-2:]

        self.levels = choose_levels(self.name, [level["reduction"] for level in self.feature_info], out_index, neck)
        used = [self.feature_info[level] for level in self.levels]
        has_last = self.levels[-1] == len(self.feature_info) - 1
        self._norm = {"norm": True} if has_last else {}  # the final norm fits the last level's channels
        self.reduction = used[0]["reduction"]
        self.sizes = sizes_of(self.net, max(level["reduction"] for level in used), built_for)
        self._require(size)
        built_for = self.sizes.nearest(*built_for)  # some cards say 384 for patches of 14

        self._uses_final_features = out_index is None and neck is None and self._has_more(built_for)
        if self._uses_final_features:
            self.net.reset_classifier(0)
        elif hasattr(self.net, "prune_intermediate_layers"):
            self.net.prune_intermediate_layers(list(self.levels), prune_norm=not has_last, prune_head=True)

        channels = [level["num_chs"] for level in used]
        if has_last:
            channels[-1] = used[-1].get("num_chs_norm", channels[-1])
        self.neck = None if neck is None else create_neck(neck, channels)
        self.num_features = channels[-1] if self.neck is None else self.neck.channels
        try:
            self._probe(built_for)
        except SIZE_ERRORS as error:
            if size is not None and isinstance(model, str):
                raise not_buildable(model, size, error) from error
            shape = (1, in_chans, *built_for)
            raise ValueError(f"{self.name} fails on a blank image of shape {shape}: {error}") from error
        self._require(size)  # more is known now
        self.data_config["input_size"] = (in_chans, *self.sizes.nearest(*built_for))

    def _require(self, size: Size | None) -> None:
        nearest = size and self.sizes.without_fixed_size.nearest(*size)
        if nearest != size:
            raise ValueError(
                f"{self.name} can't be built for img_size={size}; the nearest size that works is {nearest}"
            )

    def set_input_size(self, size: Size) -> None:
        """Set the expected image size to `(height, width)`; weights of an architecture with a fixed size are adapted.

        Raises:
            ValueError: the architecture doesn't take that size, or timm can't adapt its weights to it.
        """
        self._require(size)
        if self.sizes.fixed not in (None, size):
            if not hasattr(self.net, "set_input_size"):
                there = "{} x {}".format(*self.sizes.fixed)
                raise ValueError(f"timm can't bring the weights of {self.name} to {size}: resize the images to {there}")
            try:
                self.net.set_input_size(img_size=size)
            except SIZE_ERRORS as error:
                raise not_buildable(self.name, size, error) from error
            self.sizes = dataclasses.replace(self.sizes, fixed=size)
        self.data_config["input_size"] = (self.in_chans, *size)

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self._features(images)
        except SIZE_ERRORS as error:
            size = tuple(images.shape[-2:])
            if self.sizes.accepts(*size):
                raise
            raise ValueError(
                f"{self.name} fails on images of {size[0]} x {size[1]} ({error}); it takes {self.sizes}"
            ) from error

    def _features(self, images: Tensor) -> Tensor:
        if self._uses_final_features:
            return self.net.forward_features(images)
        levels = self._read(images)
        return levels[0] if self.neck is None else self.neck(levels)

    def _read(self, images: Tensor) -> list[Tensor]:
        """Compute the levels `[B, D_i, h_i, w_i]`."""
        options = dict(indices=list(self.levels), output_fmt="NCHW", intermediates_only=True)
        return self.net.forward_intermediates(images, **options, **self._norm)

    def _has_more(self, built_for: Size) -> bool:
        """Return whether timm's classifier receives a map of the deepest level's size, but with other channels."""
        arguments = (self.net, self.in_chans, self._probe_size(built_for))
        deepest = self.feature_info[-1]
        try:
            whole, _ = unused_parameters(*arguments, self.net.forward_features)
            if not isinstance(whole, Tensor) or whole.ndim != 4:
                return False  # tokens
            if whole.shape[1] in (deepest["num_chs"], deepest.get("num_chs_norm")):
                return False  # the level itself; no second pass is needed
            (level,), _ = unused_parameters(*arguments, self._read)
        except SIZE_ERRORS:  # coat can't be run on the meta device
            return False
        # neither channels-last nor of another stride
        return whole.shape[-2:] == level.shape[-2:] and whole.shape[1] != level.shape[1]

    def _probe_size(self, built_for: Size) -> Size:
        return built_for if self.sizes.fixed else self.sizes.nearest(*(min(side, PROBE_SIDE) for side in built_for))

    def _probe(self, built_for: Size) -> None:
        """Freeze parameters that do not contribute; find the channels and whether the family can normalize them."""
        arguments = (self, self.in_chans, self._probe_size(built_for), self._features)
        try:
            features, unused = unused_parameters(*arguments)
        except RuntimeError:
            if not next(self.net.parameters()).is_meta:
                raise
            return  # coat and gemma4_vit can be built on the meta device, not run
        except AssertionError:
            if not self._norm:
                raise
            self._norm = {}  # hiera refuses to
            features, unused = unused_parameters(*arguments)
        self.num_features = features.shape[1]
        for name in unused:
            self.get_parameter(name).requires_grad_(False)
        if self.sizes.fixed is None and self.sizes.step == (1, 1):
            self.sizes = self._with_step()

    def _with_step(self) -> ImageSizes:
        """Return the sizes, with the stride as step where odd maps fail: some shortcuts round sizes, others don't."""
        stride = self.sizes.stride
        tried = [(3 * stride + 1, 4 * stride - 1)]  # halved, with a remainder rounded up or down, they stay odd
        if any(isinstance(layer, nn.AvgPool2d) for layer in self.net.modules()):  # mostly those that round
            halves = [side for side in (stride // 2, stride // 4, stride // 8, stride // 16) if side > 0]
            tried += [(7 * side, 7 * side) for side in halves]  # odd after so many halvings

        def all_run(sizes: ImageSizes) -> bool:
            each = {sizes.nearest(*size) for size in tried}
            return all(runs_without_values(self, self.in_chans, size, self._features) for size in each)

        if all_run(self.sizes):
            return self.sizes
        for step in (stride, max(level["reduction"] for level in self.feature_info)):
            stepped = dataclasses.replace(self.sizes, step=(step, step))
            if all_run(stepped):
                return stepped
        return self.sizes


def _built_for(net: nn.Module, is_instance: bool) -> Size | None:
    """Return the size of the position embedding of a model that was passed in; its card may give another."""
    size = getattr(getattr(net, "patch_embed", None), "img_size", None)
    return tuple(size) if is_instance and size is not None else None
