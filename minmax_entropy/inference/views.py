"""Test-time views: an image is seen at several sizes, and zoomed where its mask is small; the mask is their mean.

They work with any source of class maps (`Source`): a model, or Grad-CAM of one. Tiles of large images take the same
views in the same order (`minmax_entropy.inference.tiles`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from minmax_entropy._checks import LARGEST_SCALE, check_number
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.mask import resample

FLIPS = {"horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}  # axes of `[..., H, W]`
# A flip and a horizontal flip, one after the other.
MIRRORED = {None: "horizontal", "horizontal": None, "vertical": "both", "both": "vertical"}


@dataclasses.dataclass(frozen=True)
class Zoom:
    """A zoomed view of images with a small mask. A map with a position every 16 or 32 pixels is too coarse for an
    object of a few percent of the image; a larger image has more positions for it.

    Args:
        scale: size of the zoomed view, as a share of the image's own: over 1, up to 4.
        below: images whose mask has a mean under this are zoomed, over 0 and up to 1. As masks are soft, sigma and
            omega count: the default goes with a threshold of 0.5 on the map, where an empty mask has 0.018.
        share: weight of the zoomed view's mask, over 0 and up to 1; the rest is the weight of the mask before.

    Raises:
        ValueError: an argument out of its range.
    """

    scale: float = 2.0
    below: float = 0.135
    share: float = 0.4

    def __post_init__(self) -> None:
        for name, (least, most) in dict(scale=(1, LARGEST_SCALE), below=(0, 1), share=(0, 1)).items():
            value = getattr(self, name)
            check_number(name, value)
            if not least < value <= most:
                raise ValueError(f"{name} must be over {least:g} and at most {most:g}, got {value!r}")


class View(NamedTuple):
    """A view of an image: its size as a share of the image's own, and its flip."""

    scale: float = 1.0
    flip: str | None = None


@dataclasses.dataclass(frozen=True)
class Views:
    """Views of an image. The mask is the mean of theirs; the class is that of the views at, or nearest to, its own
    size.

    Args:
        scales: shares of the image's own size.
        mirror: flip the image horizontally at the other scales.
        zoom: see `Zoom`; None for no zoom.
        flips: "horizontal", "vertical", "both": at every scale the image is seen flipped like this as well.
        refined: refine maps where the model does (`mask_refinement`); False leaves it out, which takes less time.
    """

    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    zoom: Zoom | None = None
    flips: tuple[str, ...] = ()
    refined: bool = True

    def __iter__(self) -> Iterator[View]:
        """Iterate over the views of all images, the deciding ones first."""
        for scale in sorted(self.scales, key=lambda scale: scale != self.deciding):
            yield from self._at(scale)

    @property
    def deciding(self) -> float:
        """The scale that decides the class."""
        return min(self.scales, key=lambda scale: abs(math.log(scale)))

    def closer(self) -> list[View]:
        """Return the zoomed views, of images with a small mask."""
        return [] if self.zoom is None else list(self._at(self.zoom.scale))

    def _at(self, scale: float) -> Iterator[View]:
        for flip in (None, *self.flips):
            yield View(scale, MIRRORED[flip] if self.mirror and scale != 1 else flip)


def recommended_views(model: nn.Module) -> Views:
    """Return the views that a model recommends (`evaluation_scales`, `evaluation_flip`, `evaluation_zoom`); a single
    one for a backbone of one size."""
    if model.backbone.sizes.fixed is not None:
        return Views()
    zoom = model.evaluation_zoom
    return Views(model.evaluation_scales, model.evaluation_flip, None if zoom is None else Zoom(**zoom))


class Source(Protocol):
    """A source of class maps and masks: a `WSLModel`, or Grad-CAM of one."""

    mask_source: str
    mask_normalization: str

    def class_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores `[B, K]` and class maps `[B, K, h, w]` of images `[B, C, H, W]`."""

    def map_weights(self, scores: Tensor) -> Tensor:
        """Weigh the class maps, `[B, K]`."""

    def region(self, images: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
        """Combine class maps into the map of the mask, `[B, 1, h, w]`."""

    def make_mask(self, region: Tensor, images: Tensor, refined: bool = True) -> Tensor:
        """Turn the map into a mask `[B, 1, H, W]` of the images in [0, 1]; `refined` maps are refined first."""


def class_weights(source: Source, scores: Sequence[Tensor]) -> Tensor:
    """Weigh the class maps of all views alike, `[B, K]`, by the scores of each view, the first of which decides: by
    their mean for the expected map, by the first for the map of the predicted class."""
    return source.map_weights(mean(scores) if source.mask_source == "expected" else scores[0])


def see(source: Source, images: Tensor, views: Views) -> tuple[list[Tensor], Tensor]:
    """Compute scores and mask of images in some views.

    Args:
        source: source of the maps, in evaluation mode.
        images: `[B, C, H, W]`, normalized.
        views: views of each image, for a pass of the backbone each.

    Returns:
        Scores `[B, K]` of each view that decides, and the mask `[B, 1, H, W]` of all views in [0, 1].
    """
    sizes: ImageSizes = source.backbone.sizes
    seen: list[tuple[View, Tensor, Tensor, Tensor]] = []
    for view in views:
        others = as_seen(images, view, sizes)
        same = next((each for each in seen if each[1] is others), None)  # no pass of its own
        seen.append((view, others, *(same[2:] if same else source.class_maps(others))))
    weights = class_weights(source, [scores for _, _, scores, _ in seen])
    masks = [_mask(source, images, view, others, maps, weights, views.refined) for view, others, _, maps in seen]
    scores = [scores for view, _, scores, _ in seen if view.scale == views.deciding]
    return scores, _zoomed(source, images, mean(masks), weights, views)


def as_seen(images: Tensor, view: View, sizes: ImageSizes) -> Tensor:
    """Return images `[B, C, H, W]` in a view, at the nearest size that the backbone takes."""
    if view.scale != 1:
        images = resample(images, sizes.nearest(*(round(view.scale * side) for side in images.shape[-2:])))
    return flipped(images, view.flip)


def flipped(tensor: Tensor, flip: str | None) -> Tensor:
    """Flip images or maps `[..., H, W]`, or flip them back."""
    return tensor if flip is None else tensor.flip(FLIPS[flip])


def _mask(
    source: Source, images: Tensor, view: View, others: Tensor, maps: Tensor, weights: Tensor, refined: bool
) -> Tensor:
    return source.make_mask(flipped(source.region(others, maps, weights), view.flip), images, refined)


def _zoomed(source: Source, images: Tensor, mask: Tensor, weights: Tensor, views: Views) -> Tensor:
    """Average the small ones among the masks with those of zoomed views."""
    if views.zoom is None:
        return mask
    small = mask.mean(dim=(1, 2, 3)) < views.zoom.below  # [B]
    rows = small.nonzero()[:, 0]
    # Parts of about as many pixels as the batch; all images where a mask depends on the others.
    whole = source.mask_normalization == "batch"
    parts = (
        [torch.arange(len(small), device=small.device)]
        if whole and len(rows)
        else rows.split(max(1, int(len(small) / views.zoom.scale**2)))
    )
    for part in parts if len(rows) else ():
        chosen = images[part]
        found = []
        for view in views.closer():
            larger = as_seen(chosen, view, source.backbone.sizes)
            maps = source.class_maps(larger)[1]
            found.append(_mask(source, chosen, view, larger, maps, weights[part], views.refined))
        after = torch.lerp(mask[part], mean(found), views.zoom.share)
        after = torch.where(small[part][:, None, None, None], after, mask[part])
        mask = mask.index_copy(0, part, after)
    return mask


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(dim=0)
