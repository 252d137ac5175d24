"""Methods that a benchmark compares, as data: settings of a model, its training and its evaluation."""

from __future__ import annotations

import dataclasses

from minmax_entropy._registry import unknown_name
from minmax_entropy.benchmark.grad_cam import METHODS as GRAD_CAMS
from minmax_entropy.engine.recipes import Recipe
from minmax_entropy.inference.evaluation import EVALUATION
from minmax_entropy.inference.options import Inference
from minmax_entropy.presets import PRESETS

ERASING = dict(erasing_steps=4)  # the paper's passes (arXiv 1907.12934), from the second epoch on
# Settings that a trained model may be evaluated with.
EVALUATED_WITH = ("decision", "mask_source", "mask_sigma", "mask_omega", *EVALUATION)


@dataclasses.dataclass(frozen=True)
class Method:
    """Method of a benchmark, a row of its table.

    Args:
        title: name in the table.
        settings: keywords of `create_model`.
        recipe: fields of `Recipe` that the method sets itself, such as `lr`, or `erasing_steps` (0 unless given).
        trained_as: name of the method whose trained weights are used; by default the method is trained itself.
        evaluated_with: attributes, named in `EVALUATED_WITH`, that are set on the trained model before its evaluation.
        grad_cam: method of `GradCAM` that computes the mask; by default the mask is the model's own.
        inference: fields of `Inference`, such as `flips` and `scales`; the pictures are drawn without them.

    Raises:
        ValueError: an unknown field or attribute; settings or a recipe beside `trained_as`; `inference` beside
            `grad_cam`, or with invalid values.
    """

    title: str
    settings: dict = dataclasses.field(default_factory=dict)
    recipe: dict = dataclasses.field(default_factory=dict)
    trained_as: str | None = None
    evaluated_with: dict = dataclasses.field(default_factory=dict)
    grad_cam: str | None = None
    inference: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trained_as is not None and (self.settings or self.recipe):
            raise ValueError(
                f"{self.title}: what is trained_as another method has no settings and no recipe of its own"
            )
        recipe, inference = ({field.name for field in dataclasses.fields(one)} for one in (Recipe, Inference))
        given = (self.recipe, recipe), (self.evaluated_with, EVALUATED_WITH), (self.inference, inference)
        for names, allowed in given:
            for name in names:
                if name not in allowed:
                    raise unknown_name("setting", name, sorted(allowed))
        if self.inference and (self.grad_cam is not None or "refine" in self.inference):
            raise ValueError(f"{self.title}: inference is without a `refine` here, and not for Grad-CAM")
        Inference(**self.inference)
        if self.grad_cam is not None and self.grad_cam not in GRAD_CAMS:
            raise unknown_name("Grad-CAM method", self.grad_cam, GRAD_CAMS)


_REFINEMENT = dict(PRESETS["refined"]["mask_refinement"], sigma=0.5)  # for the baselines, which do better with it
_THRESHOLD, _REFINED = dict(mask_sigma=0.28), dict(mask_refinement=_REFINEMENT)
_CAM_REFINED = dict(mask_refinement=dict(_REFINEMENT, compression=0.0))
ALL_VIEWS = {name: PRESETS["refined"][name] for name in ("evaluation_scales", "evaluation_flip", "evaluation_zoom")}

ONE_VIEW = dict(evaluation_scales=(1.0,), evaluation_zoom=None)

ALL_ONES = "all-ones"  # marks every pixel; nothing is trained

METHODS: dict[str, Method] = {
    ALL_ONES: Method("all-ones"),
    # Class activation maps: Zhou et al., CVPR 2016; maximum: Oquab et al., CVPR 2015; log-sum-exp: Pinheiro and
    # Collobert, CVPR 2015.
    "cam-avg": Method("CAM, average", dict(preset="cam")),
    "cam-max": Method("CAM, maximum", dict(preset="cam", localizer="max")),
    "cam-lse": Method("CAM, log-sum-exp", dict(preset="cam", localizer="lse")),
    # Durand et al., CVPR 2017; Ilse et al., ICML 2018.
    "wildcat": Method("WILDCAT", dict(preset="cam", localizer="wildcat")),
    "deep-mil": Method("Deep MIL", dict(preset="cam", localizer="attention")),
    "grad-cam": Method("Grad-CAM", trained_as="cam-avg", grad_cam="grad_cam"),
    "grad-cam++": Method("Grad-CAM++", trained_as="cam-avg", grad_cam="grad_cam++"),
    "layer-cam": Method("LayerCAM", trained_as="cam-avg", grad_cam="layer_cam"),
    # Masks of these at another threshold, and refined. The maps of the package are in [0, 1], where the compression
    # does next to nothing; the CAM has none. More of it makes them worse (docs/results/localization_trials.md).
    "cam-0.42": Method("CAM, average, threshold 0.42", trained_as="cam-avg", evaluated_with=dict(mask_sigma=0.42)),
    "wildcat-0.28": Method("WILDCAT, threshold 0.28", trained_as="wildcat", evaluated_with=_THRESHOLD),
    "grad-cam-0.28": Method(
        "Grad-CAM, threshold 0.28", trained_as="cam-avg", grad_cam="grad_cam", evaluated_with=_THRESHOLD
    ),
    "layer-cam-0.28": Method(
        "LayerCAM, threshold 0.28", trained_as="cam-avg", grad_cam="layer_cam", evaluated_with=_THRESHOLD
    ),
    "cam-refined": Method("CAM, average, refined", trained_as="cam-avg", evaluated_with=_CAM_REFINED),
    "grad-cam-refined": Method("Grad-CAM, refined", trained_as="cam-avg", grad_cam="grad_cam", evaluated_with=_REFINED),
    "layer-cam-refined": Method(
        "LayerCAM, refined", trained_as="cam-avg", grad_cam="layer_cam", evaluated_with=_REFINED
    ),
    # And in all views of the preset: at other scales, flipped, and zoomed where little is marked.
    "cam-scales": Method("CAM, average, all views", trained_as="cam-avg", evaluated_with=ALL_VIEWS),
    "grad-cam-scales": Method(
        "Grad-CAM, all views", trained_as="cam-avg", grad_cam="grad_cam", evaluated_with=ALL_VIEWS
    ),
    "layer-cam-scales": Method(
        "LayerCAM, all views", trained_as="cam-avg", grad_cam="layer_cam", evaluated_with=ALL_VIEWS
    ),
    "layer-cam-0.28-scales": Method(
        "LayerCAM, threshold 0.28, all views",
        trained_as="cam-avg",
        grad_cam="layer_cam",
        evaluated_with=_THRESHOLD | ALL_VIEWS,
    ),
    "cam-refined-scales": Method(
        "CAM, average, refined, all views", trained_as="cam-avg", evaluated_with=_CAM_REFINED | ALL_VIEWS
    ),
    "grad-cam-refined-scales": Method(
        "Grad-CAM, refined, all views", trained_as="cam-avg", grad_cam="grad_cam", evaluated_with=_REFINED | ALL_VIEWS
    ),
    "layer-cam-refined-scales": Method(
        "LayerCAM, refined, all views",
        trained_as="cam-avg",
        grad_cam="layer_cam",
        evaluated_with=_REFINED | ALL_VIEWS,
    ),
    # arXiv 1907.12934 with a detached mask; the size constraint of the follow-up paper, IEEE TMI 2022; an area penalty.
    "minmax": Method("min-max entropy", dict(preset="paper")),
    "minmax-erasing": Method("min-max entropy + erasing", dict(preset="paper"), recipe=ERASING),
    "minmax-size": Method("min-max entropy, size constraint", dict(preset="paper", size_loss="barrier")),
    "minmax-size-erasing": Method(
        "min-max entropy, size constraint + erasing", dict(preset="paper", size_loss="barrier"), recipe=ERASING
    ),
    "area": Method("min-max entropy, area penalty", dict(preset="area")),
    # Trained itself, not taken from "area": the localizer's error chooses the epoch.
    "refined": Method("min-max entropy, area and control, refined", dict(preset="refined")),
    "refined-one-scale": Method(
        "min-max entropy, area and control, refined, one view",
        trained_as="refined",
        evaluated_with=ONE_VIEW,
    ),
    "refined-no-zoom": Method(
        "min-max entropy, area and control, refined, no zoom",
        trained_as="refined",
        evaluated_with=dict(evaluation_zoom=None),
    ),
    "area-erasing": Method("min-max entropy, area penalty + erasing", dict(preset="area"), recipe=ERASING),
}


def register_method(name: str, method: Method) -> None:
    """Register a method for benchmarks under a name, in place of an earlier one of that name.

    Raises:
        ValueError: `trained_as` is unknown, or names a method that is not trained itself.
    """
    if method.trained_as is not None and (
        method.trained_as in (name, ALL_ONES) or get_method(method.trained_as).trained_as is not None
    ):
        raise ValueError(f"{name}: trained_as must be a method that is trained itself, {method.trained_as!r} is not")
    METHODS[name] = method


def get_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
