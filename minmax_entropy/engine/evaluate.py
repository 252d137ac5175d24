"""Evaluation of classification error and localization, with every image at its own size."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from minmax_entropy._progress import progress_bar
from minmax_entropy.data import DamagedFileError, LabelledImages, LabelledStream, Preprocess, Sample
from minmax_entropy.engine.faithfulness import PROBED, SWAPPED, Prober, Probes
from minmax_entropy.inference.options import Inference
from minmax_entropy.inference.prediction import Prediction
from minmax_entropy.inference.predictor import predict_images
from minmax_entropy.metrics import LocalizationMeter, MaskPlaces, border_share, target_rank
from minmax_entropy.metrics.classification import TOP, resolve_rank
from minmax_entropy.wsl import WSLModel

# Figures that are averaged over the images that have them.
MEANS = ("border_share", "true_border_share", *PROBED)
SHUFFLE_SEED = 0  # of the images, for masks of other classes: in order, neighbours are of one class
MAX_SCORED = 2**26  # pixels of an image that are scored; each takes some 20 bytes for a while


@dataclasses.dataclass
class Evaluation:
    """Result of an evaluation: `metrics` over all images, and a row per image in the order of the data set."""

    meter: LocalizationMeter
    rows: list[dict]
    damaged: list[str]
    seconds: float
    empty_classes: Sequence[int] = ()
    places: dict[int, MaskPlaces] = dataclasses.field(default_factory=dict)  # of the masks, by true class

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of `LocalizationMeter.compute`. With `empty_classes`, localization covers the other images, and
        `false_alarms` is the share of images without an object whose mask is not empty."""
        empty = [row["mask_area"] > 0 for row in self.rows if row["target"] in self.empty_classes]
        alarms = {"false_alarms": sum(empty) / len(empty)} if empty else {}
        return self.meter.compute() | alarms | _means(self.rows, MEANS)

    def by_class(self) -> dict[int, dict[str, float]]:
        """Return, for each class with images, their number (`images`), the mean of each figure, and `constancy` (see
        `MaskPlaces`). `classifier_swapped` is averaged over images of other classes under this class's masks."""
        classes: dict[int, list[dict]] = {}
        cut_by: dict[int, list[dict]] = {}
        for row in self.rows:
            classes.setdefault(row["target"], []).append({**row, "error": row["predicted"] != row["target"]})
            if "swapped_with" in row:
                cut_by.setdefault(row["swapped_with"], []).append(row)
        keys = ("error", "f1_foreground", "f1_background", "mask_area", *MEANS)
        return {
            label: {
                "images": len(rows),
                **_means(rows, [key for key in keys if key != SWAPPED]),
                **_means(cut_by.get(label, []), [SWAPPED]),
                **(self.places[label].compute() if label in self.places else {}),
            }
            for label, rows in sorted(classes.items())
        }

    @staticmethod
    def merged(parts: Sequence[Evaluation]) -> Evaluation:
        """Merge the evaluations of the parts of a data set."""
        if len(parts) == 1:
            return parts[0]
        meter = copy.deepcopy(parts[0].meter)
        for part in parts[1:]:
            meter.merge(part.meter)
        rows = sorted((row for part in parts for row in part.rows), key=lambda row: row["index"])
        damaged = [path for part in parts for path in part.damaged]
        places: dict[int, MaskPlaces] = {}
        for part in parts:
            for label, found in part.places.items():
                places.setdefault(label, MaskPlaces()).merge(found)
        return Evaluation(meter, rows, damaged, max(part.seconds for part in parts), parts[0].empty_classes, places)


def _means(rows: Sequence[dict], keys: Sequence[str]) -> dict[str, float]:
    """Return the mean of each figure over the rows that have it."""
    values = {key: [row[key] for row in rows if key in row] for key in keys}
    return {key: sum(found) / len(found) for key, found in values.items() if found}


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
    boxes: bool | None = None,
    inference: Inference | None = None,
    min_probability: float | None = None,
    share: tuple[int, int] = (0, 1),
    probes: Probes | None = None,
) -> Evaluation:
    """Compute the classification error and, where the data set has masks or boxes, the figures of localization.

    Images with more than 67,108,864 pixels are scored on every n-th row and column, so that no more are left. Images
    predicted below the model's `min_probability`, or as one of its `empty_classes`, get an empty mask; their most
    probable class still counts in the error. Images whose true class is one of `empty_classes` hold nothing to
    localize: they count in the error and in `false_alarms`.

    Args:
        model: any `WSLModel`, a plain CAM baseline included.
        dataset: labelled images, or a stream of them; they are read one by one, each at its own size.
        preprocess: by default `preprocess_for(model)`.
        batch_size: largest number of images in one forward pass.
        with_masks: False does not read the masks: only error and area of the predicted masks are computed.
        skip_damaged: leave out images that can't be read, or whose mask can't be read or does not fit, and list them
            in `damaged`.
        progress: show a progress bar.
        threshold: a pixel is foreground where the mask is at least this; by default the model's `mask_threshold`.
        boxes: None computes box metrics for images with known boxes; True also for images with a mask, whose
            connected regions give the true boxes; False for none. Box metrics may take most of the time.
        inference: tiles, views and refinement; by default the views that the model recommends.
        min_probability: images whose class is less probable get an empty mask; by default the model's.
        share: `(number, count)`: evaluate every `count`-th image, starting with image `number`; see
            `Evaluation.merged`.
        probes: questions about the marked regions: each figure of `PROBED` is added to the rows and to the metrics.
            Images are then evaluated in another order; the rows stay in that of the data set.

    Raises:
        DamagedFileError: a file can't be read, or a mask has another size than its image, unless `skip_damaged`.
        ValueError: no image could be read, or the classes of the model, or of the judge of `probes`, differ from those
            of the images in number, names or order.
    """
    if model.class_names is not None and model.class_names != dataset.class_names:
        raise ValueError(
            f"the model's classes are {model.class_names}, those of the images are {dataset.class_names}: "
            "open them with `classes=model.class_names`"
        )
    judge = None if probes is None else probes.judge
    if judge is not None and judge.num_classes != model.num_classes:
        raise ValueError(f"the judge has {judge.num_classes} classes, the model has {model.num_classes}")
    if judge is not None and judge.class_names not in (None, dataset.class_names):
        raise ValueError(f"the judge's classes are {judge.class_names}, those of the images are {dataset.class_names}")
    started = time.perf_counter()
    threshold = model.mask_threshold if threshold is None else threshold
    prober = None if probes is None else Prober(model, probes, preprocess, threshold)
    meter = LocalizationMeter(threshold, boxes)
    damaged: list[str] = []
    samples: dict[int, Sample] = {}
    places: dict[int, MaskPlaces] = {}
    reader = read_samples(dataset, with_masks, damaged if skip_damaged else None, share, shuffled=probes is not None)

    def images() -> Iterator[tuple[int, Image.Image]]:
        for index, sample in progress_bar(reader, "evaluate", progress, total=length_of(dataset, share)):
            samples[index] = sample if prober is not None else sample._replace(image=None)
            yield index, sample.image

    full_size = with_masks or prober is not None  # masks that classifiers see must fit the image
    rows = []
    how = batch_size, full_size, inference, min_probability
    for prediction in predict_images(model, images(), preprocess, *how):
        sample = samples.pop(prediction.index)
        has_object = sample.target not in model.empty_classes
        places.setdefault(sample.target, MaskPlaces()).update(prediction.mask >= threshold)
        scores = _scores(meter, prediction, sample, with_masks, has_object)
        if prober is not None and has_object:
            scores |= prober(sample.image, sample.target, prediction.mask)
        rows.append(
            {
                "index": prediction.index,
                "name": sample.name,
                "target": sample.target,
                "predicted": prediction.class_index,
                "probability": prediction.probability,
                **scores,
            }
        )
    if not rows:
        count = length_of(dataset, share)
        raise ValueError(f"none of the {'' if count is None else f'{count} '}images could be read")
    rows.sort(key=lambda row: row["index"])
    return Evaluation(meter, rows, damaged, time.perf_counter() - started, model.empty_classes, places)


def _scores(
    meter: LocalizationMeter, prediction: Prediction, sample: Sample, with_boxes: bool, has_object: bool
) -> dict[str, float]:
    """Score an image. The rank of its class is left out where there are no more classes than Top-5 counts."""
    correct = prediction.class_index == sample.target
    rank = target_rank(prediction.probabilities, sample.target) if len(prediction.probabilities) > TOP else None
    if not has_object:  # nothing to localize, whether there is an empty mask or none
        meter.classes.update(*resolve_rank(correct, rank))
        return {"mask_area": float(prediction.mask.mean())}
    step = sampling_step(prediction.mask.size)
    boxes = [tuple(side / step for side in box) for box in sample.boxes] if with_boxes and sample.boxes else None
    mask = prediction.mask[::step, ::step]
    truth = None if sample.mask is None else sample.mask[::step, ::step]
    scores = meter.update(mask, truth, correct, rank=rank, boxes=boxes)
    placed = {"border_share": border_share(mask >= meter.threshold)}
    if truth is not None:
        placed["true_border_share"] = border_share(truth)
    return scores | {name: share for name, share in placed.items() if not math.isnan(share)}


def length_of(dataset: LabelledImages | LabelledStream, share: tuple[int, int] = (0, 1)) -> int | None:
    """Return the number of images in a share, or None where it is unknown."""
    return None if isinstance(dataset, LabelledStream) else len(range(share[0], len(dataset), share[1]))


def read_samples(
    dataset: LabelledImages | LabelledStream,
    with_masks: bool = True,
    damaged: list[str] | None = None,
    share: tuple[int, int] = (0, 1),
    shuffled: bool = False,
) -> Iterator[tuple[int, Sample]]:
    """Yield indices and samples, in order unless they are `shuffled`; streams can't be shuffled.

    Args:
        dataset: the images, or a stream of them.
        with_masks: False does not read the masks.
        damaged: list that receives the paths of unreadable files; None raises `DamagedFileError` instead.
        share: see `evaluate`.
    """
    take = _from_stream(dataset, with_masks) if isinstance(dataset, LabelledStream) else None
    indices = itertools.count() if take else range(share[0], len(dataset), share[1])
    if shuffled and not take:
        indices = np.random.default_rng(SHUFFLE_SEED).permutation(indices).tolist()
    for index in indices:
        try:
            sample = take() if take else _sample(dataset, index, with_masks)
        except StopIteration:
            return
        except DamagedFileError as error:
            if take and index % share[1] != share[0]:
                continue
            if damaged is None:
                raise
            damaged.append(error.path)
            continue
        if index % share[1] == share[0] % share[1]:
            yield index, sample


def _sample(dataset: LabelledImages, index: int, with_masks: bool) -> Sample:
    if with_masks:
        return dataset[index]
    return Sample(dataset.image(index), dataset.target(index), None, dataset.name(index), None)


def _from_stream(stream: LabelledStream, with_masks: bool) -> Callable[[], Sample]:
    stream.with_masks = with_masks
    return iter(stream).__next__


def evaluate_all_ones(
    dataset: LabelledImages | LabelledStream,
    boxes: bool | None = None,
    skip_damaged: bool = False,
    empty_classes: Sequence[int] = (),
) -> dict[str, float]:
    """Return the metrics of a mask that is 1 everywhere, which any localization must beat. Arguments are those of
    `evaluate`; images of `empty_classes` are left out."""
    meter = LocalizationMeter(boxes=boxes)
    for target, mask, known in _annotations(dataset, skip_damaged):
        if mask is not None and target not in empty_classes:
            step = sampling_step(mask.size)
            scaled = [tuple(side / step for side in box) for box in known] if known else None
            meter.update(np.ones(mask[::step, ::step].shape, dtype=np.float32), mask[::step, ::step], boxes=scaled)
    return meter.compute()


def _annotations(
    dataset: LabelledImages | LabelledStream, skip_damaged: bool
) -> Iterator[tuple[int, np.ndarray | None, Sequence | None]]:
    """Yield class, mask and boxes of each image; the images themselves are not read where that is possible."""
    if isinstance(dataset, LabelledStream) or skip_damaged:
        samples = read_samples(dataset, damaged=[] if skip_damaged else None)
        yield from ((sample.target, sample.mask, sample.boxes) for _, sample in samples)
    else:
        for index in range(len(dataset)):
            yield dataset.target(index), dataset.mask(index), dataset.boxes(index)


def sampling_step(pixels: int) -> int:
    """Return the smallest n for which every n-th row and column of an image leave at most `MAX_SCORED` pixels."""
    return max(math.ceil(math.sqrt(pixels / MAX_SCORED)), 1)
