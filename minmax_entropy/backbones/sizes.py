"""Image sizes that an architecture takes: one, or whole multiples of a step."""

from __future__ import annotations

import dataclasses
import math
import operator

import timm
from timm.layers import HybridEmbed, PatchEmbed
from torch import nn

from minmax_entropy._checks import MAX_SIDE
from minmax_entropy._symbolic import rounded_quotient

Size = tuple[int, int]

# timm modules whose cards say "fixed input size" though their models take others: positions are encoded by convolutions
# or not at all, or images are resized inside (crossvit). tests/test_backbones.py and benchmarks/sweep.py run each.
FLEXIBLE = frozenset(
    {"byobnet", "crossvit", "efficientvit_msra", "sequencer", "swiftformer", "twins", "vision_transformer_sam", "xcit"}
)
# Levels are added to one another, or the image is cut into patches: sides must be multiples of the deepest stride.
WHOLE_STRIDES = frozenset(
    {"deepseek_vit", "dla", "gemma4_vit", "hieradet_sam2", "hrnet", "mvitv2", "naflexvit", "qwen3_vit"}
)
# The image is cut into blocks first: a discrete cosine transform, or space to depth.
BLOCKS = {"csatv2": 8, "tresnet": 4}
# Convolutions without padding, or a pooling of the deepest map (GhostNetV2): smaller images leave no position.
SMALLEST = {"inception_v3": 75, "inception_v4": 75, "inception_resnet_v2": 75, "ghostnet": 33}


def as_pair(size: int | Size) -> Size:
    """Return `(height, width)` from a number of pixels or a pair.

    Raises:
        ValueError: anything else.
    """
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or any(
        isinstance(s, bool) or not hasattr(s, "__index__") or not 1 <= s <= MAX_SIDE for s in pair
    ):
        raise ValueError(f"img_size must be a number of pixels or (height, width), got {size!r:.80}; up to {MAX_SIDE}")
    return operator.index(pair[0]), operator.index(pair[1])


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """The sizes `(height, width)` in pixels that an architecture takes.

    Args:
        stride: stride of its deepest features; no side may be shorter.
        step: height and width must be whole multiples of it.
        fixed: the only size it takes, or None.
        smallest: shortest side allowed.
    """

    stride: int
    step: Size = (1, 1)
    fixed: Size | None = None
    smallest: int = 1

    def nearest(self, height: int, width: int) -> Size:
        """Return the size closest to `(height, width)` that the architecture takes."""
        if self.fixed is not None:
            return self.fixed
        return tuple(
            _at_least(math.ceil(self.floor / step), rounded_quotient(side, step)) * step
            for side, step in zip((height, width), self.step, strict=True)
        )

    def accepts(self, height: int, width: int) -> bool:
        """Return whether the architecture takes images of `(height, width)`."""
        if self.fixed is not None:
            return (height, width) == self.fixed
        return all(
            side >= self.floor and side % step == 0 for side, step in zip((height, width), self.step, strict=True)
        )

    @property
    def floor(self) -> int:
        """Length of the shortest side in pixels."""
        return max(self.smallest, self.stride)

    @property
    def without_fixed_size(self) -> ImageSizes:
        """Sizes for which a model of the architecture can be built."""
        return dataclasses.replace(self, fixed=None)

    @property
    def multiple(self) -> int:
        """Number of pixels; sides that are multiples of it leave no partial position on the feature map."""
        return math.lcm(self.stride, *self.step)

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"{self.fixed[0]} x {self.fixed[1]} only"
        floor = self.nearest(1, 1)
        if self.step == (1, 1):
            return f"any size from {floor[0]} x {floor[1]}"
        steps = str(self.step[0]) if self.step[0] == self.step[1] else f"{self.step[0]} x {self.step[1]}"
        return f"multiples of {steps} from {floor[0]} x {floor[1]}"


def _at_least(least: int, count: int) -> int:
    """Return `max(least, count)` without a `max`, which `torch.export` would keep in sizes derived from `count`."""
    return count if count >= least else least


def family_of(name: str, kind: type | None = None) -> str:
    """Return the timm module that defines a model ("vision_transformer"); for an unknown name, that of its class."""
    source = timm.model_entrypoint(name) if timm.is_model(name) else kind
    return source.__module__.rsplit(".", 1)[-1]


def sizes_of(net: nn.Module, stride: int, built_for: Size) -> ImageSizes:
    """Find the sizes that a timm model takes.

    Args:
        net: the model.
        stride: stride in pixels of the deepest features that are read.
        built_for: the size it was built for.
    """
    card = getattr(net, "pretrained_cfg", None) or {}
    family = family_of(card.get("architecture") or "", type(net))
    embedding = getattr(net, "patch_embed", None)
    is_strict = getattr(embedding, "strict_img_size", None)
    is_dynamic = getattr(net, "dynamic_img_size", False) or is_strict is False  # timm's own switches
    says_fixed = bool(card.get("fixed_input_size", False) if card else is_strict)
    is_fixed = says_fixed and not is_dynamic and family not in FLEXIBLE
    deepest = max(level["reduction"] for level in net.feature_info)
    step = _step(net, family, deepest if family in WHOLE_STRIDES else stride)
    return ImageSizes(stride, step, tuple(built_for) if is_fixed else None, SMALLEST.get(family, 1))


def _step(net: nn.Module, family: str, stride: int) -> Size:
    embedding = getattr(net, "patch_embed", None)
    if isinstance(embedding, PatchEmbed) and not embedding.dynamic_img_pad:
        return as_pair(embedding.patch_size)
    if family in BLOCKS:
        return as_pair(BLOCKS[family])
    if family in WHOLE_STRIDES or isinstance(embedding, HybridEmbed):
        return as_pair(stride)
    blocked = [layer for layer in net.modules() if type(layer).__name__ in ("HaloAttn", "BilinearAttnTransform")]
    return as_pair(stride * max(layer.block_size for layer in blocked)) if blocked else (1, 1)
