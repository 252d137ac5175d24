"""Choice of the threshold of masks, by F1+ on images with known masks, and of the minimum class probability."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from minmax_entropy._bands import row_bands
from minmax_entropy._progress import progress_bar
from minmax_entropy.data import LabelledImages, Preprocess
from minmax_entropy.engine.evaluate import evaluate, length_of, read_samples
from minmax_entropy.inference.options import Inference
from minmax_entropy.inference.predictor import predict_images
from minmax_entropy.metrics import dice
from minmax_entropy.wsl import WSLModel

# Thresholds to try, in float32 like the masks, so that counts are those of `mask >= threshold`.
THRESHOLDS = np.linspace(0.01, 0.99, 99, dtype=np.float32)


class DiceCurve:
    """Mean F1+ over images at each of `THRESHOLDS`, in one pass, from two histograms per image."""

    def __init__(self) -> None:
        self.images = 0
        self.total = np.zeros(len(THRESHOLDS))

    def update(self, mask: np.ndarray, target: np.ndarray) -> None:
        """Add an image: mask in [0, 1] and boolean object pixels, both `[H, W]`.

        Raises:
            ValueError: the shapes differ.
        """
        if mask.shape != target.shape:
            raise ValueError(f"mask {mask.shape} and target {target.shape} differ in shape")
        counts = np.zeros((2, len(THRESHOLDS) + 1), dtype=np.int64)
        for rows in row_bands(*mask.shape):
            reached = np.searchsorted(THRESHOLDS, mask[rows], side="right")  # number of thresholds that mark the pixel
            for row, chosen in zip(counts, (slice(None), target[rows]), strict=True):
                row += np.bincount(reached[chosen].ravel(), minlength=counts.shape[1])
        marked, found = (row[::-1].cumsum()[::-1][1:] for row in counts)  # pixels, and object pixels, over a threshold
        size = marked + int(counts[1].sum())
        self.total += np.where(size > 0, 2 * found / np.maximum(size, 1), 1.0)  # both empty counts as 1
        self.images += 1

    def mean(self) -> np.ndarray:
        """Return the mean F1+ at each threshold, `[99]`."""
        return self.total / max(self.images, 1)


@dataclasses.dataclass(frozen=True)
class ThresholdChoice:
    """Best threshold, and the mean F1+ at it and at the model's earlier one.

    `curve` has the mean F1+ at each threshold that was tried, `damaged` the paths of files that were left out.
    """

    threshold: float
    f1_foreground: float
    f1_foreground_before: float
    images: int
    curve: dict[float, float]
    damaged: list[str]


def choose_threshold(
    model: WSLModel,
    dataset: LabelledImages,
    preprocess: Preprocess | None = None,
    *,
    batch_size: int = 16,
    skip_damaged: bool = False,
    progress: bool = False,
    inference: Inference | None = None,
) -> ThresholdChoice:
    """Return the threshold among 0.01, 0.02, ... 0.99 with the highest mean F1+, the lowest one at ties.

    The model is not changed. The choice uses masks: make it on images held out from testing, and set
    `model.mask_threshold = choice.threshold`.

    Args:
        model: any `WSLModel`.
        dataset: labelled images with masks; those without are skipped.
        preprocess, batch_size, skip_damaged, progress, inference: as for `evaluate`.

    Raises:
        DamagedFileError: as for `evaluate`.
        ValueError: no image has a mask.
    """
    curve, before, damaged = DiceCurve(), [], []
    targets: dict[int, np.ndarray] = {}
    samples = read_samples(dataset, True, damaged if skip_damaged else None)

    def images() -> Iterator[tuple[int, Image.Image]]:
        for index, sample in progress_bar(samples, "choose a threshold", progress, total=length_of(dataset)):
            if sample.mask is not None:
                targets[index] = sample.mask
                yield index, sample.image

    for prediction in predict_images(model, images(), preprocess, batch_size, inference=inference):
        target = targets.pop(prediction.index)
        curve.update(prediction.mask, target)
        before.append(dice(prediction.mask >= model.mask_threshold, target))
    if not curve.images:
        count = length_of(dataset)
        raise ValueError(
            f"none of the {'' if count is None else f'{count} '}images has a mask: a threshold is chosen by them"
        )
    figures = {round(float(each), 2): float(f1) for each, f1 in zip(THRESHOLDS, curve.mean(), strict=True)}
    best = max(figures, key=figures.get)
    return ThresholdChoice(best, figures[best], float(np.mean(before)), curve.images, figures, damaged)


@dataclasses.dataclass(frozen=True)
class ProbabilityChoice:
    """Minimum probability, the number of images that it is from, and the paths of files that were left out."""

    min_probability: float
    images: int
    damaged: list[str]


def choose_min_probability(
    model: WSLModel,
    dataset: LabelledImages,
    preprocess: Preprocess | None = None,
    *,
    share: float = 0.95,
    **reading,
) -> ProbabilityChoice:
    """Return the probability of the predicted class that a share of the images reach. The model is not changed.

    No masks are read. Choose it on images with objects that were not trained on, predicted as later images will be
    (size, tiles, averages), as for a classifier that may abstain (Hendrycks and Gimpel, ICLR 2017), and set
    `model.min_probability = choice.min_probability`. In about `1 - share` of the images with an object, nothing will
    then be found, wrongly; how many images without one are recognized can only be measured on such images.

    Args:
        model: any `WSLModel`.
        dataset: labelled images with an object; those of the model's `empty_classes` are left out.
        share: share of the images that keep their class, in (0, 1).
        preprocess, reading: as for `evaluate` (`batch_size`, `skip_damaged`, `progress`, `inference`).

    Raises:
        DamagedFileError: as for `evaluate`.
        ValueError: as for `evaluate`, or a share that is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share is that of the images that keep their class, over 0 and below 1, got {share!r}")
    found = evaluate(model, dataset, preprocess, with_masks=False, **reading)
    probabilities = [row["probability"] for row in found.rows if row["target"] not in model.empty_classes]
    if not probabilities:
        raise ValueError("none of the images has an object: all of them are of empty_classes")
    least = np.quantile(probabilities, 1 - share, method="lower")
    return ProbabilityChoice(float(least), len(probabilities), found.damaged)
