"""Settings of evaluation: refined masks, thresholds, classes without an object, recommended views."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from minmax_entropy._checks import check_empty_classes, check_flag, check_scales, check_share, check_threshold
from minmax_entropy.inference.refinement import AffinityRefinement
from minmax_entropy.inference.views import Zoom
from minmax_entropy.model import MinMaxEntropy
from minmax_entropy.settings import from_options, setting

# Keywords of a model that its training does not use.
EVALUATION = (
    *("mask_threshold", "min_probability", "empty_classes", "mask_refinement"),
    *("evaluation_scales", "evaluation_flip", "evaluation_zoom"),
)


def _check_zoom(label: str, options: dict | None) -> dict | None:
    return None if options is None else dataclasses.asdict(from_options(label, Zoom, options))


class EvaluatedModel(MinMaxEntropy):
    """The method with settings that its training does not use; see `WSLModel` for each."""

    mask_threshold = setting("mask_threshold", check_threshold)
    min_probability = setting("min_probability", check_share)
    evaluation_scales = setting("evaluation_scales", check_scales)
    evaluation_flip = setting("evaluation_flip", check_flag)
    evaluation_zoom = setting("evaluation_zoom", _check_zoom)

    @property
    def empty_classes(self) -> list[int]:
        """Indices of the classes whose images hold no object. May be set at any time."""
        return list(self._empty_classes)

    @empty_classes.setter
    def empty_classes(self, indices: Sequence[int]) -> None:
        self._empty_classes = check_empty_classes(indices, self.num_classes, self.task)

    @property
    def mask_refinement(self) -> dict | None:
        """Options of the map's `AffinityRefinement`, or None. May be set at any time, as a whole."""
        return None if self.refinement is None else self.refinement.options

    @mask_refinement.setter
    def mask_refinement(self, options: dict | None) -> None:
        self.refinement = None if options is None else from_options("mask_refinement", AffinityRefinement, options)

    def map_weights(self, logits: Tensor) -> Tensor:
        """Weigh the class maps for the map of the mask: `[B, K]` from the localizer's scores `[B, K]`; in evaluation
        among the classes with an object."""
        return super().map_weights(logits if self.training else self.without_empty(logits))

    def without_empty(self, logits: Tensor) -> Tensor:
        """Return scores `[B, K]` with minus infinity for `empty_classes`."""
        if not self._empty_classes:
            return logits
        return logits.index_fill(1, torch.tensor(self._empty_classes, device=logits.device), -torch.inf)

    def make_mask(self, regions: Tensor, images: Tensor, refined: bool = True) -> Tensor:
        """Turn maps `[B, N, h, w]` of images `[B, C, H, W]` into masks `[B, N, H, W]` in [0, 1], each by itself. In
        evaluation, `refined` maps go through `mask_refinement`, with its threshold."""
        if self.training:
            return super().make_mask(regions, images)
        if self.refinement is not None and refined:
            regions = self.refinement(regions, images)
        return self.masking(regions, tuple(images.shape[-2:]), self.evaluation_sigma(refined))

    def evaluation_sigma(self, refined: bool = True) -> float:
        """Return the threshold on the normalized map in evaluation, that of `mask_refinement` where it has one."""
        own = None if self.refinement is None or not refined else self.refinement.sigma
        return self.mask_sigma if own is None else own
