"""Options of predictions: tiles, views, refinement."""

from __future__ import annotations

import dataclasses
import math

from minmax_entropy.inference.filters import Refinement
from minmax_entropy.inference.tiles import check_tile, why_not_tiled
from minmax_entropy.inference.views import FLIPS, Views, recommended_views
from minmax_entropy.model import MinMaxEntropy


@dataclasses.dataclass(frozen=True)
class Inference:
    """Options of predictions. By default each whole image is seen in the views that the model recommends.

    Args:
        tile: side in pixels, at the network's scale, of the tiles of images whose network input is larger (see
            `Tiling`). None: inputs of more than 4,194,304 pixels (2048 x 2048) at their largest scale, the zoomed one
            included, go by tiles of 2048, all others whole.
        overlap: pixels that neighbouring tiles share; 256 by default, a quarter of smaller tiles.
        flips: "horizontal", "vertical", "both": flipped views that are averaged with the image's.
        scales: factors of the network's input size, in place of the recommended views (`evaluation_scales`,
            `evaluation_flip`, `evaluation_zoom`); every scale has every flip. Masks are averaged; the class is that of
            the scale nearest to 1, its probabilities averaged over the flips.
        views: replaces `scales`, `flips` and the recommended views.
        refine: brings the mask closer to the image's edges; see `minmax_entropy.inference.filters`.

    Raises:
        ValueError: an unknown flip, no scale or one that is not over 0, tile or overlap below 1.
    """

    tile: int | None = None
    overlap: int | None = None
    flips: tuple[str, ...] = ()
    scales: tuple[float, ...] | None = None
    refine: Refinement | None = None
    views: Views | None = None

    def __post_init__(self) -> None:
        unknown = [flip for flip in self.flips if flip not in FLIPS]
        if unknown:
            raise ValueError(f"flips are any of {tuple(FLIPS)}, got {unknown[0]!r}")
        if self.scales is not None and (not self.scales or not all(0 < scale < math.inf for scale in self.scales)):
            raise ValueError(f"scales are numbers over 0, such as (0.75, 1.0, 1.25), got {self.scales!r}")
        if self.views is not None and (self.flips or self.scales is not None):
            raise ValueError("views have scales and flips of their own: give them, or scales and flips")
        for name in ("tile", "overlap"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is a number of pixels, 1 or more, got {getattr(self, name)!r}")

    def views_of(self, model: MinMaxEntropy) -> Views:
        """Return the views of each image: those given, or else those that the model recommends, with the flips."""
        if self.views is not None:
            return self.views
        views = recommended_views(model) if self.scales is None else Views(tuple(map(float, self.scales)))
        return dataclasses.replace(views, flips=tuple(self.flips))


def require_multiclass(model: MinMaxEntropy) -> None:
    """Refuse models of other tasks than one class an image.

    Raises:
        ValueError: the model's task is another.
    """
    if model.task != "multiclass":
        raise ValueError(
            f'one class an image is expected here, the model has task="{model.task}": call the model itself, '
            "`model(images, target)` in a training loop and `model(images)` for scores and mask"
        )


def check_inference(model: MinMaxEntropy, inference: Inference) -> None:
    """Refuse options that a model does not support.

    Raises:
        ValueError: scales for a backbone of one size; tiles that the backbone or the heads don't work with.
    """
    scales = {view.scale for view in inference.views_of(model)}
    if model.backbone.sizes.fixed is not None and inference.tile is None and scales != {1.0}:
        raise ValueError(
            f"this backbone takes images of {model.backbone.sizes}: give a tile of that size to see images at other "
            "scales"
        )
    if inference.tile is not None:
        check_tile(model, inference.tile, inference.overlap)
        if reason := why_not_tiled(model):
            raise ValueError(f"this model can't work by tiles: {reason}")
