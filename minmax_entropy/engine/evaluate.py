"""Evaluation: every image at its own size, classification error and localization."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from minmax_entropy.data import DamagedFileError, LabelledImages, Preprocess, Sample
from minmax_entropy.engine.inference import Inference, Prediction, predict_images, preprocess_for, require_multiclass
from minmax_entropy.engine.progress import progress_bar
from minmax_entropy.metrics import LocalizationMeter
from minmax_entropy.model import WSLModel

__all__ = [
    "Evaluation",
    "Prediction",
    "evaluate",
    "evaluate_all_ones",
    "predict_images",
    "preprocess_for",
    "read_samples",
    "require_multiclass",
]


MAX_SCORED = 2**26  # pixels of an image that figures are made of; they take some 20 bytes each for a while


@dataclasses.dataclass
class Evaluation:
    """Figures of an evaluation: `metrics` over all images, and a row per image, in the order of the data set."""

    metrics: dict[str, float]
    rows: list[dict]
    damaged: list[str]
    seconds: float


def evaluate(
    model: WSLModel,
    dataset: LabelledImages,
    preprocess: Preprocess | None = None,
    *,
    batch_size: int = 16,
    with_masks: bool = True,
    skip_damaged: bool = False,
    progress: bool = False,
    threshold: float | None = None,
    inference: Inference | None = None,
) -> Evaluation:
    """Classification error and, where the data set has masks, F1+, F1- and PxAP.

    Of images with more than 67,108,864 pixels every n-th row and column counts, so that no more are left.

    Args:
        model: any `WSLModel`, a plain CAM baseline included.
        dataset: labelled images; every image at its own size, one after the other.
        preprocess: by default `preprocess_for(model)`.
        batch_size: largest number of images in one forward pass.
        with_masks: False leaves the masks closed: error and area of the predicted mask alone.
        skip_damaged: leave images that can't be read, or whose mask can't be read or does not fit, out of the figures,
            and list them.
        progress: show a progress bar.
        threshold: a pixel is foreground where the mask is at least this; by default the model's `mask_threshold`.
        inference: tiles, averaging and refinement; by default one pass over each image.

    Raises:
        DamagedFileError: a file can't be read, or a mask has another size than its image, unless `skip_damaged`.
        ValueError: no image could be read.
    """
    started = time.perf_counter()
    meter = LocalizationMeter(model.mask_threshold if threshold is None else threshold)
    damaged: list[str] = []
    targets: dict[int, tuple[int, np.ndarray | None, str]] = {}
    samples = read_samples(dataset, with_masks, damaged if skip_damaged else None)

    def images() -> Iterator[tuple[int, Image.Image]]:
        for index, sample in progress_bar(samples, "evaluate", progress, total=len(dataset)):
            targets[index] = sample.target, sample.mask, sample.name
            yield index, sample.image

    rows = []
    for prediction in predict_images(model, images(), preprocess, batch_size, with_masks, inference):
        target, mask, name = targets.pop(prediction.index)
        correct = prediction.class_index == target
        scores = meter.update(_sampled(prediction.mask), None if mask is None else _sampled(mask), correct)
        row = {
            "index": prediction.index,
            "name": name,
            "target": target,
            "predicted": prediction.class_index,
            "probability": prediction.probability,
            "mask_area": float(prediction.mask.mean()),
        }
        if scores is not None:
            row["f1_foreground"], row["f1_background"] = scores
        rows.append(row)
    if not rows:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    return Evaluation(meter.compute(), rows, damaged, time.perf_counter() - started)


def read_samples(
    dataset: LabelledImages, with_masks: bool = True, damaged: list[str] | None = None
) -> Iterator[tuple[int, Sample]]:
    """Indices and samples in order.

    Args:
        dataset: the images.
        with_masks: False leaves the masks closed.
        damaged: gets the paths of what can't be read; None raises `DamagedFileError` instead.
    """
    for index in range(len(dataset)):
        try:
            if with_masks:
                sample = dataset[index]
            else:
                sample = Sample(dataset.image(index), dataset.target(index), None, dataset.name(index))
        except DamagedFileError as error:
            if damaged is None:
                raise
            damaged.append(error.path)
            continue
        yield index, sample


def evaluate_all_ones(dataset: LabelledImages) -> dict[str, float]:
    """The figures of a mask that is 1 everywhere: what any localization must beat."""
    meter = LocalizationMeter()
    for index in range(len(dataset)):
        mask = dataset.mask(index)
        if mask is not None:
            mask = _sampled(mask)
            meter.update(np.ones(mask.shape, dtype=np.float32), mask)
    metrics = meter.compute()
    del metrics["error"]
    return metrics


def _sampled(pixels: np.ndarray) -> np.ndarray:
    """Every n-th row and column of `[H, W]`, the smallest n that leaves at most `MAX_SCORED` pixels."""
    step = math.ceil(math.sqrt(pixels.size / MAX_SCORED))
    return pixels[::step, ::step] if step > 1 else pixels
