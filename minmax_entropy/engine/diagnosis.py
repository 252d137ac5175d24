"""Warnings about masks: a line for each sign that a training went wrong, from labels and predicted masks alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from minmax_entropy.engine.evaluate import Evaluation

_logger = logging.getLogger(__name__)

# Share of the marked pixels. Classes of steel whose masks were a strip along the border had 0.64 to 0.96, others up to
# 0.45; a mask of the whole image has 0.29.
BORDER_SHARE = 0.6
PLACE_EXCESS = 0.75  # share of the way from masks at random places, whose constancy is their area, to one mask for all
# A mean mask area outside this range is next to nothing, or nearly the whole image: the trivial optimum.
MASK_AREA_RANGE = (0.02, 0.9)
SWAPPED_EXCESS = 0.5  # share of images taken for a class under its masks, minus the share under other masks
DECIDES = 0.7  # share of images whose class the classifier finds in X+, relative to the share in whole images
LEARNED = 0.8  # largest error, relative to that of always predicting the commonest class
FEW_IMAGES = 5  # classes with fewer images are not judged
MANY_NAMES = 5  # classes that a warning names


def warnings_of(evaluation: Evaluation, class_names: Sequence[str]) -> list[str]:
    """Return warnings, each with the classes concerned; an empty list if nothing looks wrong.

    They say that the masks of a class lie at the border or at one place whatever the image, that they mark next to
    nothing or nearly everything, that the classes were not learned and, if the evaluation had `Probes`, that the
    classifier reads the class off a mask or that the region does not decide the class. Objects that do lie at the
    border, or always at one place, cause a warning as well: the pictures show which is the case.

    Args:
        evaluation: evaluation of a trained model; true masks are not used.
        class_names: names of the classes.
    """
    by_class = {
        label: figures
        for label, figures in _with_excess(evaluation).items()
        if figures["images"] >= FEW_IMAGES and label not in evaluation.empty_classes
    }

    def those(is_so: Callable[[dict], bool], key: str) -> str:
        """Return the names of the classes that meet the condition, each with its figure."""
        found = {label: figures[key] for label, figures in by_class.items() if key in figures and is_so(figures)}
        worst = sorted(found, key=found.get, reverse=True)
        shown = [f"{class_names[label]} ({found[label]:.2f})" for label in worst[:MANY_NAMES]]
        more = [f"{len(worst) - MANY_NAMES} more"] if len(worst) > MANY_NAMES else []
        return ", ".join(shown + more)

    def one_place(figures: dict) -> bool:
        area = figures["marked_share"]
        return figures["constancy"] - area > PLACE_EXCESS * (1 - area)

    low, high = MASK_AREA_RANGE
    signs = (
        ("border_share", lambda f: f["border_share"] > BORDER_SHARE, "masks lie along the border of the image"),
        ("constancy", one_place, "masks lie at one place whatever the image"),
        ("mask_area", lambda f: f["mask_area"] < low, "masks mark next to nothing"),
        ("mask_area", lambda f: f["mask_area"] > high, "masks mark nearly the whole image"),
        (
            "swapped_excess",
            lambda f: f["swapped_excess"] > SWAPPED_EXCESS,
            "the classifier reads the class off the mask: it finds it in images of other classes",
        ),
        (
            "classifier_foreground",
            lambda f: f["classifier_foreground"] < DECIDES * f["classifier_whole"],
            "the region does not decide the class: the classifier finds it in whole images, and not in X+",
        ),
    )
    found = [(text, those(is_so, key)) for key, is_so, text in signs]
    lines = [f"{text}: {classes}" for text, classes in found if classes]
    error, blind = _errors(evaluation)
    if blind and error > LEARNED * blind:
        lines.append(f"the classes were not learned: the error is {error:.2f}, by the commonest class {blind:.2f}")
    return lines


def _with_excess(evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """Return figures by class, with `swapped_excess`: how much more often the classifier predicts the class under its
    masks than under those of other classes. It is 0 for a classifier that always gives the same answer."""
    by_class = evaluation.by_class()
    rows = [row for row in evaluation.rows if "swapped_answer" in row]
    for label, figures in by_class.items():
        under = [row for row in rows if row["swapped_with"] == label]
        others = [row for row in rows if row["swapped_with"] != label]
        others = [row for row in others if row["target"] != label] or others  # with two classes there are none
        if under and others:
            shares = (sum(row["swapped_answer"] == label for row in part) / len(part) for part in (under, others))
            figures["swapped_excess"] = next(shares) - next(shares)
    return by_class


def _errors(evaluation: Evaluation) -> tuple[float, float]:
    """Return the error, and that of always predicting the commonest class."""
    targets = [row["target"] for row in evaluation.rows]
    wrong = sum(row["predicted"] != row["target"] for row in evaluation.rows)
    commonest = max(map(targets.count, set(targets)))
    return wrong / len(targets), 1 - commonest / len(targets)


def warn_of_collapse(row: dict) -> None:
    """Log a warning if the masks of an epoch mark next to nothing, or nearly everything, on average."""
    low, high = MASK_AREA_RANGE
    if not low <= row["mask_area"] <= high:
        _logger.warning(
            "epoch %d: the mask covers %.1f %% of the images on average: it %s; change the weight of the area "
            "(size_loss='area', size_weight) or detach_mask",
            row["epoch"],
            100 * row["mask_area"],
            "marks next to nothing" if row["mask_area"] < low else "has collapsed to the whole image",
        )
