"""The methods that a benchmark compares, as data: settings of a model, and how its mask is found."""

from __future__ import annotations

import dataclasses

from minmax_entropy.presets import PRESETS
from minmax_entropy.registry import unknown_name

ERASING = dict(erasing_steps=4)  # the paper's passes (arXiv 1907.12934), from the second epoch on


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of a table.

    Args:
        title: what the table calls it.
        settings: keywords of `create_model`.
        recipe: fields of `Recipe` that are its own, such as `lr`, or `erasing_steps` (0 unless given).
        trained_as: name of the method whose trained weights it takes; by default it is trained itself.
        mask: attributes of the trained model that are set before it is evaluated, such as `mask_sigma`.
        grad_cam: method of `GradCAM` that makes the mask; by default it is the model's own.
    """

    title: str
    settings: dict = dataclasses.field(default_factory=dict)
    recipe: dict = dataclasses.field(default_factory=dict)
    trained_as: str | None = None
    mask: dict = dataclasses.field(default_factory=dict)
    grad_cam: str | None = None


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
    "cam-refined": Method(
        "CAM, average, refined", trained_as="cam-avg", mask=dict(mask_refinement=PRESETS["refined"]["mask_refinement"])
    ),
    # arXiv 1907.12934 with a detached mask; the size constraint of the follow-up paper, IEEE TMI 2022; an area price.
    "minmax": Method("min-max entropy"),
    "minmax-erasing": Method("min-max entropy + erasing", recipe=ERASING),
    "minmax-size": Method("min-max entropy, size constraint", dict(size_loss="barrier")),
    "minmax-size-erasing": Method(
        "min-max entropy, size constraint + erasing", dict(size_loss="barrier"), recipe=ERASING
    ),
    "area": Method("min-max entropy, area price", dict(preset="area")),
    "refined": Method("min-max entropy, area price, refined", dict(preset="refined")),
    "area-erasing": Method("min-max entropy, area price + erasing", dict(preset="area"), recipe=ERASING),
}


def register_method(name: str, method: Method) -> None:
    """Make a method known to benchmarks by a name, which may be that of a known one.

    Raises:
        ValueError: `trained_as` is no known method.
    """
    if method.trained_as is not None:
        get_method(method.trained_as)
    METHODS[name] = method


def get_method(name: str) -> Method:
    """A method by its name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
