"""Settings of a model that may be changed once it is built, each checked as at its building."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence

from torch import nn

from minmax_entropy._checks import (
    check_choice,
    check_empty_classes,
    check_flag,
    check_scales,
    check_share,
)
from minmax_entropy.inference.refinement import AffinityRefinement
from minmax_entropy.inference.views import Zoom

DECISIONS = ("classifier", "localizer")
BN_STATISTICS = ("passes", "images")


class LiveSettings(nn.Module):
    """What a model with a `classifier` or None, a `backbone`, `erasing` and a `criterion` may be told at any time."""

    @property
    def decision(self) -> str:
        """Whose scores are `logits`, "classifier" or "localizer". May be set at any time."""
        return self._decision

    @decision.setter
    def decision(self, name: str) -> None:
        check_choice("decision", name, DECISIONS)
        self._decision = name

    @property
    def classifier_decides(self) -> bool:
        """Whether `logits` are the classifier's, which then runs in evaluation, too."""
        return self.classifier is not None and self.decision == "classifier"

    @property
    def bn_statistics(self) -> str:
        """What BatchNorm's running statistics are of, "passes" or "images". May be set at any time."""
        return self._bn_statistics

    @bn_statistics.setter
    def bn_statistics(self, name: str) -> None:
        check_choice("bn_statistics", name, BN_STATISTICS)
        self._bn_statistics = name

    @property
    def min_probability(self) -> float:
        """Of the class, below which there is nothing. May be set at any time."""
        return self._min_probability

    @min_probability.setter
    def min_probability(self, value: float) -> None:
        check_share("min_probability", value)
        self._min_probability = float(value)

    @property
    def evaluation_scales(self) -> tuple[float, ...]:
        """Sizes at which images are seen in evaluation, as shares of their own. May be set at any time."""
        return self._evaluation_scales

    @evaluation_scales.setter
    def evaluation_scales(self, scales: Sequence[float]) -> None:
        self._evaluation_scales = check_scales("evaluation_scales", scales)

    @property
    def evaluation_flip(self) -> bool:
        """Whether the images are flipped at the other `evaluation_scales`. May be set at any time."""
        return self._evaluation_flip

    @evaluation_flip.setter
    def evaluation_flip(self, flip: bool) -> None:
        check_flag("evaluation_flip", flip)
        self._evaluation_flip = flip

    @property
    def evaluation_zoom(self) -> dict | None:
        """Options of the `Zoom`, or None. May be set at any time, as a whole."""
        return None if self._zoom is None else dataclasses.asdict(self._zoom)

    @evaluation_zoom.setter
    def evaluation_zoom(self, options: dict | None) -> None:
        self._zoom = None if options is None else _from_options("evaluation_zoom", Zoom, options)

    @property
    def empty_classes(self) -> list[int]:
        """Indices of the classes whose images hold no object. May be set at any time."""
        return list(self._empty_classes)

    @empty_classes.setter
    def empty_classes(self, indices: Sequence[int]) -> None:
        self._empty_classes = check_empty_classes(indices, self.num_classes, self.task)

    @property
    def mask_refinement(self) -> dict | None:
        """Options of the `AffinityRefinement` of the map, or None. May be set at any time, as a whole."""
        return None if self.refinement is None else self.refinement.options

    @mask_refinement.setter
    def mask_refinement(self, options: dict | None) -> None:
        self.refinement = None if options is None else _from_options("mask_refinement", AffinityRefinement, options)

    @property
    def evaluation_sigma(self) -> float:
        """Threshold on the normalized map in evaluation: that of `mask_refinement` where it has one."""
        own = None if self.refinement is None else self.refinement.sigma
        return self.mask_sigma if own is None else own

    def settings(self) -> dict:
        """Keywords that rebuild the model as it is: `config`, with what may have been set since."""
        changed = {key: value for key, value in self._live().items() if value != self._as_built[key]}
        options = {name: getattr(self, name) for name in ("mask_refinement", "evaluation_zoom")}  # all of them
        return {**self.config, **changed, **options}

    def _live(self) -> dict:
        """What can be set on a model that is built."""
        own = ("decision", "classifier_scale", "bn_statistics", "detach_mask", "checkpoint_passes")
        answer = ("min_probability", "empty_classes", *(f"evaluation_{part}" for part in ("scales", "flip", "zoom")))
        mask = ("sigma", "omega", "threshold", "source", "normalization", "refinement")
        erasing = ("steps", "sigma", "scope", "reduction", "fallback", "normalize_trust")
        return {
            **{name: getattr(self, name) for name in (*own, *answer, *(f"mask_{part}" for part in mask))},
            **{f"erasing_{name}": getattr(self.erasing, name) for name in erasing},
            **{f"{name}_weight": weight for name, weight in self.criterion.weights.items()},
            "background_loss": self.criterion.background_loss,
            "size_loss": self.criterion.size_loss,
            "size_condition": self.criterion.size_condition,
            "label_smoothing": self.criterion.label_smoothing,
            "class_weights": self.criterion.class_weights,
        }


def _from_options(name: str, build: Callable, options: dict) -> object:
    """What `build` makes of a dictionary that is the keyword `name`.

    Raises:
        TypeError: no dictionary, or an option that it does not have or that has a wrong type.
        ValueError: an option out of its range.
    """
    if not isinstance(options, dict):
        raise TypeError(f"{name} must be a dictionary of options or None, got {options!r:.80}")
    try:
        return build(**options)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its options are {list(inspect.signature(build).parameters)}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
