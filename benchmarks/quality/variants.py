"""Methods that the configurations here name, beside those of `minmax_entropy.benchmark.methods.METHODS`: the preset
`refined` with one thing changed, in training or in evaluation alone, baselines with other learning rates; and `GROUPS`,
names that stand for several."""

from __future__ import annotations

import dataclasses

from minmax_entropy.benchmark.methods import METHODS, ONE_VIEW, Method, register_method
from minmax_entropy.presets import PRESETS


def _refinement(**changes: float) -> dict:
    return dict(mask_refinement=dict(PRESETS["refined"]["mask_refinement"], **changes))


def _trained(title: str, recipe: dict | None = None, **settings: object) -> Method:
    """The preset, trained with other settings."""
    return Method(title, dict(preset="refined", **settings), recipe=recipe or {})


def _evaluated(title: str, trained_as: str = "refined", **attributes: object) -> Method:
    """Trained weights, evaluated with other settings."""
    return Method(title, trained_as=trained_as, evaluated_with=attributes)


def _trial(title: str, name: str, **options: float | str) -> Method:
    """A variant that the library does not have (`trials.py`)."""
    return _trained(title, trial=dict(name=name, **options))


def _detached(part: str, first: int, last: int) -> Method:
    return _trial(f"mask detached in the {part} third of the training", "detached", first=first, last=last)


def _cam(rate: float) -> Method:
    return Method(f"CAM, average, learning rate {rate:g}", dict(preset="cam"), dict(lr=rate))


def _empty(name: str) -> Method:
    """A known method, whose masks are empty where the class "good" is predicted."""
    method = METHODS[name]
    return dataclasses.replace(
        method,
        title=f'{method.title}, "good" empty',
        settings={},
        trained_as=method.trained_as or name,
        evaluated_with={**method.evaluated_with, "empty_classes": (1,)},
    )


TWO_PASSES = dict(erasing_steps=2)
_PRICE = dict(size_condition=None, size_weight=1.0)  # of the area, whatever the region decides

VARIANTS: dict[str, Method] = {
    # Evaluation.
    "refined-unflipped": _evaluated("no zoom, no size flipped", evaluation_zoom=None, evaluation_flip=False),
    "refined-1.25": _evaluated(
        "scales 0.75, 1, 1.25, no zoom", evaluation_scales=(0.75, 1.0, 1.25), evaluation_zoom=None
    ),
    "refined-2": _evaluated(
        "scales 0.75, 1, 1.5, 2, no zoom", evaluation_scales=(0.75, 1.0, 1.5, 2.0), evaluation_zoom=None
    ),
    "refined-plain": _evaluated("no refinement, threshold 0.28", mask_refinement=None),
    "refined-plain-one-scale": _evaluated("no refinement, threshold 0.28, one view", mask_refinement=None, **ONE_VIEW),
    "refined-classifier": _evaluated("the classifier decides", decision="classifier"),
    "refined-predicted": _evaluated("map of the predicted class", mask_source="predicted"),
    "refined-0.4": _evaluated("sigma 0.4", **_refinement(sigma=0.4)),
    "refined-0.5": _evaluated("sigma 0.5", **_refinement(sigma=0.5)),
    "refined-0.6": _evaluated("sigma 0.6", **_refinement(sigma=0.6)),
    "refined-linear": _evaluated(
        "no compression, temperature 0.2, sigma 0.4", **_refinement(compression=0.0, temperature=0.2, sigma=0.4)
    ),
    "refined-flip": Method(
        "averaged with the flipped image", trained_as="refined", inference=dict(flips=("horizontal",))
    ),
    # The objective.
    "detached": _trained("mask detached, no size term", detach_mask=True, size_loss=None, border_weight=0.0),
    "no-size": _trained("gradient through the mask, no size term", detach_mask=False, size_loss=None),
    "barrier": _trained("log-barrier on both areas", size_loss="barrier"),
    "area-1": _trained("area, weight 1", size_weight=1.0),
    "area-4": _trained("area, weight 4", size_weight=4.0),
    "before": _trained(
        "no control, no border term, no margin, no condition, area weight 1",
        control_weight=0.0,
        border_weight=0.0,
        reflect_margin=0.0,
        **_PRICE,
    ),
    "no-margin": _trained("no margin", reflect_margin=0.0),
    "margin-1": _trained("margin in every step", reflect_margin=1.0),
    "no-border": _trained("no border term", border_weight=0.0),
    "no-border-no-margin": _trained("no border term, no margin", border_weight=0.0, reflect_margin=0.0),
    "border-1": _trained("border, weight 1", border_weight=1.0),
    "border-4": _trained("border, weight 4", border_weight=4.0),
    "no-control": _trained("no control", control_weight=0.0),
    "no-condition": _trained("no condition on the area, weight 1", **_PRICE),
    "control-0.5": _trained("control, half", control_weight=0.5),
    "control-2": _trained("control twice", control_weight=2.0),
    "no-background": _trained("no background term", background_weight=0.0),
    "background-0.5": _trained("background term, half", background_weight=0.5),
    "background-2": _trained("background term twice", background_weight=2.0),
    "eem": _trained("background term: eem", background_loss="eem"),
    "foreground-2": _trained("foreground term twice", foreground_weight=2.0),
    "localizer-2": _trained("localizer's term twice", localizer_weight=2.0),
    # The mask.
    "sigma-0.5": _trained("mask_sigma 0.5 in training", mask_sigma=0.5),
    "omega-4": _trained("mask_omega 4", mask_omega=4.0),
    "omega-16": _trained("mask_omega 16", mask_omega=16.0),
    "batch": _trained("maps normalized over the batch", mask_normalization="batch"),
    # The network.
    "average": _trained("localizer: average", localizer="average"),
    "lse": _trained("localizer: log-sum-exp", localizer="lse"),
    "attention": _trained("localizer: attention", localizer="attention"),
    "scale-0.75": _trained("classifier at three quarters of the image's size", classifier_scale=0.75),
    "scale-1": _trained("classifier at the image's size", classifier_scale=1.0),
    "separate": _trained("a backbone each", shared_backbone=False),
    "bn-passes": _trained("BatchNorm statistics of all passes", bn_statistics="passes"),
    "refined-bn": _trained("BatchNorm trained", freeze_bn=False),
    "refined-level": _trained("features of the deepest level", out_index=-1),
    "level-2": _trained("features of stride 8", out_index=2),
    "fpn": _trained("neck fpn, stride 4", neck="fpn"),
    "fpn-8": _trained("neck fpn, stride 8", neck="fpn", out_index=2),
    "stride-8": _trained("all stages, output stride 8", out_index=None, output_stride=8),
    # Erasing and the recipe.
    "erasing": _trained("erasing, 4 passes", dict(erasing_steps=4)),
    "erasing-2": _trained("erasing, 2 passes", TWO_PASSES),
    "erasing-2-0.6": _evaluated("erasing, 2 passes, sigma 0.6 in evaluation", "erasing-2", **_refinement(sigma=0.6)),
    "erasing-late": _trained("erasing, 4 passes, from the sixth epoch", dict(erasing_steps=4, erasing_from_epoch=5)),
    "erasing-blank": _trained(
        "erasing, 4 passes, untrusted images blank", dict(erasing_steps=4), erasing_fallback="blank"
    ),
    "erasing-sigma-1": _trained("erasing, 2 passes, erasing_sigma 1", TWO_PASSES, erasing_sigma=1.0),
    "erasing-sigma-100": _trained("erasing, 2 passes, erasing_sigma 100", TWO_PASSES, erasing_sigma=100.0),
    "slow-price": _trained("weight of the area rises over a fifth", dict(size_warmup=0.2)),
    "refined-5e-4": _trained("learning rate 5e-4", dict(lr=5e-4)),
    # What the library does not have; steps of photographs (138) and of bundled synthetic images (621).
    "prior": _trained(
        "area drawn to a quarter of the image, in place of the penalty", size_loss="prior", size_weight=4.0
    ),
    "learned": _trial("scale and offset of the map learned", "learned"),
    "top-2": _trial("maps of the two most probable classes", "top", classes=2),
    "control-whole": _trial("control by whole images alone", "control", masks="whole"),
    "control-others": _trial("control by masks of other images alone", "control", masks="others"),
    "control-regions": _trial("control by whole images and masks of others, no rest", "control", masks="regions"),
    "control-random": _trial("control by whole images and masks of chance", "control", masks="random"),
    "control-shifted": _trial("control by whole images and the own mask, shifted", "control", masks="shifted"),
    "fill-noise": _trial("cut parts filled with noise", "filled", fill="noise"),
    "fill-blurred": _trial("cut parts filled with the blurred image", "filled", fill="blurred"),
    "fill-others": _trial("cut parts filled with the rest of another image", "filled", fill="others"),
    "averaged": _trial("X+ judged by an average of the classifier", "averaged"),
    "follows": _trial("maps that follow crops and flips", "follows"),
    "whole": _trial("classifier trained on the whole image as well", "whole"),
    "whole-classifier": _evaluated("the same, the classifier decides", "whole", decision="classifier"),
    "crop": _trial("X+ cut to what is marked, and enlarged", "crop"),
    "crop-classifier": _evaluated("the same, the classifier decides", "crop", decision="classifier"),
    "random-scale": _trial("classifier at a random scale, 0.5 to 1", "random-scale"),
    "detached-first-138": _detached("first", 0, 46),
    "detached-last-138": _detached("last", 92, 138),
    "detached-first-621": _detached("first", 0, 207),
    "detached-last-621": _detached("last", 414, 621),
    # Baselines.
    "cam-avg-1e-4": _cam(1e-4),
    "cam-avg-5e-4": _cam(5e-4),
    "cam-avg-5e-3": _cam(5e-3),
    "cam-avg-2e-2": _cam(2e-2),
    "cam-bn": Method("CAM, average, BatchNorm trained", dict(preset="cam", freeze_bn=False)),
    # Images of class 1, "good", hold no object.
    **{
        f"{name}-empty": _empty(name)
        for name in ("cam-avg", "cam-refined-scales", "grad-cam", "layer-cam", "refined", "refined-one-scale")
    },
}

GROUPS: dict[str, tuple[str, ...]] = {
    "baselines": (
        "all-ones",
        *("cam-avg", "cam-scales", "cam-refined", "cam-refined-scales"),
        *("grad-cam", "grad-cam-0.28", "grad-cam-scales", "grad-cam-refined", "grad-cam-refined-scales"),
        *("layer-cam", "layer-cam-0.28", "layer-cam-scales", "layer-cam-0.28-scales"),
        *("layer-cam-refined", "layer-cam-refined-scales"),
    ),
    "preset": ("refined", "refined-one-scale", "refined-no-zoom"),
    # What to expect: the preset, and of the baselines the best.
    "expected": (
        *("all-ones", "cam-avg", "cam-refined-scales", "layer-cam-refined-scales"),
        *("refined-one-scale", "refined"),
    ),
    # What each part of the objective does, and with other weights.
    "terms": (
        *("cam-avg", "refined", "before", "no-margin", "margin-1", "no-border", "no-border-no-margin"),
        *("no-control", "no-condition"),
        *("area-1", "area-4", "border-1", "border-4", "control-0.5", "control-2", "no-background", "erasing-2-0.6"),
        *("refined-0.5", "refined-0.6"),
    ),
    # Asked of every kind of images.
    "questions": (
        *("detached", "no-size", "barrier"),
        *("eem", "foreground-2", "localizer-2", "sigma-0.5", "omega-4", "omega-16", "batch"),
        *("average", "lse", "attention", "scale-0.75", "scale-1", "separate"),
        "erasing",
    ),
    "evaluation": (
        *("refined-unflipped", "refined-1.25", "refined-2", "refined-plain", "refined-plain-one-scale"),
        *("refined-classifier", "refined-predicted", "refined-0.4", "refined-0.6", "refined-linear", "refined-flip"),
    ),
    # With the model of `trials.py`.
    "control-trials": (
        *("control-whole", "control-others", "control-regions", "control-random", "control-shifted"),
        *("fill-noise", "fill-blurred", "fill-others", "averaged", "follows"),
    ),
    "trials": (
        *("refined", "refined-classifier", "prior", "background-0.5", "background-2", "learned", "top-2"),
        *("erasing-2", "erasing-sigma-1", "erasing-sigma-100"),
        *("whole", "whole-classifier", "crop", "crop-classifier", "random-scale"),
    ),
}


def register() -> None:
    """Make `VARIANTS` known to benchmarks; those that are trained come first, the others take their weights."""
    for name, method in sorted(VARIANTS.items(), key=lambda item: item[1].trained_as is not None):
        register_method(name, method)
