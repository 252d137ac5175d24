"""Evaluation: every image at its own size, classification error and localization."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from minmax_entropy.data import DamagedFileError, LabelledImages, Preprocess
from minmax_entropy.engine.progress import progress_bar
from minmax_entropy.metrics import LocalizationMeter
from minmax_entropy.model import WSLModel
from minmax_entropy.modes import in_evaluation


def preprocess_for(model: WSLModel, short_side: int | None = None) -> Preprocess:
    """The evaluation input that a model expects.

    Args:
        short_side: shorter side of the images as the network sees them; by default that of `data_config`'s
            `input_size`. Where `data_config` has `resize="reference"` only images that are smaller are scaled, and none
            with "reference_native", as in the authors' implementation.
    """
    config = model.data_config
    resize = config.get("resize", "short_side")
    if short_side is None and resize != "reference_native":
        short_side = min(config["input_size"][-2:])
    return Preprocess(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        short_side=short_side,
        multiple=model.backbone.sizes.multiple,
        fixed_size=model.backbone.sizes.fixed,
        reference=resize != "short_side",
    )


def require_multiclass(model: WSLModel) -> None:
    """Refuse models of other tasks: data sets and predictions here have one class an image.

    Raises:
        ValueError: the model's task is another.
    """
    if model.task != "multiclass":
        raise ValueError(
            f'one class an image is expected here, the model has task="{model.task}": call the model itself, '
            "`model(images, target)` in a training loop and `model(images)` for scores and mask"
        )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    index: int
    class_index: int
    probability: float
    mask: np.ndarray  # float32 [H, W] in [0, 1]


@torch.inference_mode()
def predict_images(
    model: WSLModel,
    images: Iterator[tuple[int, Image.Image]],
    preprocess: Preprocess | None = None,
    batch_size: int = 16,
    full_size: bool = True,
) -> Iterator[Prediction]:
    """Predict images one after the other; those of one network size that follow each other go through together.

    Args:
        model: the model, put into eval mode for the time being.
        images: pairs of an index and an RGB image.
        preprocess: by default `preprocess_for(model)`.
        batch_size: largest number of images in one forward pass; 1 for a model whose mask depends on the batch.
        full_size: masks at the images' own sizes; False leaves them at the network's, padding included.

    Raises:
        ValueError: the model's task is not "multiclass".
    """
    require_multiclass(model)
    if model.mask_normalization == "batch":
        batch_size = 1
    preprocess = preprocess or preprocess_for(model)
    device = next(model.parameters()).device

    def flush(batch: list[tuple[int, tuple[int, int], torch.Tensor]]) -> Iterator[Prediction]:
        output = model(torch.stack([tensor for _, _, tensor in batch]).to(device))
        probabilities, classes = output.logits.softmax(dim=1).max(dim=1)
        masks = output.mask.float().cpu()
        for (index, size, _), p, k, mask in zip(batch, probabilities.tolist(), classes.tolist(), masks, strict=True):
            yield Prediction(index, k, p, (preprocess.restore(mask, size) if full_size else mask)[0].numpy())

    with in_evaluation(model):
        batch = []
        for index, image in images:
            tensor = preprocess(image)
            if batch and (len(batch) == batch_size or batch[0][2].shape != tensor.shape):
                yield from flush(batch)
                batch = []
            batch.append((index, (image.height, image.width), tensor))
        if batch:
            yield from flush(batch)


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
) -> Evaluation:
    """Classification error and, where the data set has masks, F1+, F1- and PxAP.

    Args:
        model: any `WSLModel`, a plain CAM baseline included.
        dataset: labelled images; every image at its own size, one after the other.
        preprocess: by default `preprocess_for(model)`.
        batch_size: largest number of images in one forward pass.
        with_masks: False leaves the masks closed: error and area of the predicted mask alone.
        skip_damaged: leave images that can't be read, or whose mask can't be read or does not fit, out of the figures,
            and list them.
        progress: show a progress bar.

    Raises:
        DamagedFileError: a file can't be read, or a mask has another size than its image, unless `skip_damaged`.
        ValueError: no image could be read.
    """
    started = time.perf_counter()
    meter = LocalizationMeter()
    damaged: list[str] = []
    targets: dict[int, tuple[int, np.ndarray | None, str]] = {}

    def images() -> Iterator[tuple[int, Image.Image]]:
        for index in progress_bar(range(len(dataset)), "evaluate", progress):
            try:
                if with_masks:
                    image, target, mask, name, _ = dataset[index]
                else:
                    image, target, mask, name = dataset.image(index), dataset.target(index), None, dataset.name(index)
            except DamagedFileError as error:
                if not skip_damaged:
                    raise
                damaged.append(error.path)
                continue
            targets[index] = target, mask, name
            yield index, image

    rows = []
    for prediction in predict_images(model, images(), preprocess, batch_size, full_size=with_masks):
        target, mask, name = targets.pop(prediction.index)
        correct = prediction.class_index == target
        scores = meter.update(prediction.mask, mask, correct)
        row = {
            "index": prediction.index,
            "name": name,
            "target": target,
            "predicted": prediction.class_index,
            "probability": prediction.probability,
            **scores,
        }
        rows.append(row)
    if not rows:
        raise ValueError(f"none of the {len(dataset)} images could be read")
    return Evaluation(meter.compute(), rows, damaged, time.perf_counter() - started)


def evaluate_all_ones(dataset: LabelledImages) -> dict[str, float]:
    """The figures of a mask that is 1 everywhere: what any localization must beat."""
    meter = LocalizationMeter()
    for index in range(len(dataset)):
        mask = dataset.mask(index)
        if mask is not None:
            meter.update(np.ones(mask.shape, dtype=np.float32), mask)
    return meter.compute()
