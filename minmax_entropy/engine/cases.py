"""Single cases of an evaluation, from the worst to the best and by class, as tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from minmax_entropy.data import LabelledImages, Preprocess
from minmax_entropy.engine.evaluate import Evaluation
from minmax_entropy.inference.options import Inference
from minmax_entropy.inference.predictor import predict_images
from minmax_entropy.metrics.names import BY_CLASS, FOUND
from minmax_entropy.report.pictures import grid, overlay, reduced
from minmax_entropy.report.tables import metrics_table
from minmax_entropy.wsl import WSLModel

MAX_CLASSES = 40  # shown in a picture with an image of each class
SHOWN_SIDE = 2048  # pixels; larger images are reduced to it in pictures


def class_table(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """Return a `metrics_table` with a row per class and the number of its images."""
    rows = {class_names[label]: figures for label, figures in evaluation.by_class().items()}
    keys = ("error", "f1_foreground", "mask_area", "border_share", "true_border_share", "constancy", *FOUND)
    return metrics_table(rows, ("images",), {key: BY_CLASS[key] for key in keys}, "class")


def class_cases(evaluation: Evaluation) -> list[int]:
    """Return the index of an image of median quality (see `ranked_cases`) for each of at most `MAX_CLASSES` classes."""
    ranked: dict[int, list[int]] = {}
    targets = {row["index"]: row["target"] for row in evaluation.rows}
    for index in ranked_cases(evaluation):
        ranked.setdefault(targets[index], []).append(index)
    return [indices[len(indices) // 2] for _, indices in sorted(ranked.items())[:MAX_CLASSES]]


def ranked_cases(evaluation: Evaluation) -> list[int]:
    """Return the indices of images from the worst to the best: of those with a mask by F1+, else of all by class."""
    with_mask = [row for row in evaluation.rows if "f1_foreground" in row]

    def quality(row: dict) -> tuple[float, ...]:
        if with_mask:
            return (row["f1_foreground"],)
        correct = row["predicted"] == row["target"]
        return correct, row["probability"] if correct else -row["probability"]

    rows = sorted(with_mask or evaluation.rows, key=quality)
    return [row["index"] for row in rows]


def case_grid(
    models: dict[str, WSLModel],
    dataset: LabelledImages,
    indices: Sequence[int],
    preprocess: Preprocess | None = None,
    cell: int = 160,
    inference: Inference | None = None,
    threshold: float | None = None,
) -> Image.Image:
    """Draw a row per image: the image, its true mask, and each model's overlay with the class that it predicts.

    Pixels are marked where the mask is at least `threshold`, by default at each model's `mask_threshold`.
    """
    rows, captions = [], []
    for index in indices:  # large images are held one at a time
        sample = dataset[index]
        image, truth = reduced(sample.image, sample.mask, SHOWN_SIDE)
        truth = Image.new("RGB", image.size) if truth is None else overlay(image, truth)
        row, caption = [image, truth], [dataset.class_names[sample.target], "no mask" if sample.mask is None else ""]
        for model in models.values():
            (found,) = predict_images(model, [(index, sample.image)], preprocess, inference=inference)
            marked = found.mask >= (model.mask_threshold if threshold is None else threshold)
            row.append(overlay(*reduced(sample.image, marked, SHOWN_SIDE)))
            said = "nothing:" if found.nothing else dataset.class_names[found.class_index]
            caption.append(f"{said} {found.probability:.2f}")
        rows.append(row)
        captions.append(caption)
    return grid(rows, ["image", "true mask", *models], captions, cell)
