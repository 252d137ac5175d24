"""Results for people: tables in Markdown, worst cases as pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from minmax_entropy.data import LabelledImages, Preprocess
from minmax_entropy.engine.evaluate import Evaluation
from minmax_entropy.engine.inference import Inference, predict_images
from minmax_entropy.engine.pictures import grid, overlay, reduced
from minmax_entropy.model import WSLModel

# Metric -> heading, in the order of the columns; all are shares, shown in percent.
HEADINGS = {
    "error": "error %",
    "top5_error": "top-5 error %",
    "f1_foreground": "F1+ %",
    "f1_background": "F1- %",
    "pxap": "PxAP %",
    "piou": "pIoU %",
    "max_piou": "max pIoU %",
    "max_box_acc": "MaxBoxAcc %",
    "max_box_acc_v2": "MaxBoxAccV2 %",
    "gt_known_loc": "GT-known %",
    "top1_loc": "Top-1 loc %",
    "top5_loc": "Top-5 loc %",
    "mask_area": "M+ %",
    "false_alarms": "false alarms %",
    "border_share": "border %",
    "true_border_share": "true border %",
}
# The same of what classifiers find in the regions (`minmax_entropy.engine.faithfulness`), a table of its own.
FOUND = {
    "classifier_whole": "own: image %",
    "classifier_foreground": "own: X+ %",
    "classifier_swapped": "own: swapped %",
    "judge_whole": "judge: image %",
    "judge_foreground": "judge: X+ %",
    "judge_background": "judge: X- %",
    "rival_foreground": "rival: X+ %",
    "rival_background": "rival: X- %",
    "insertion": "insertion %",
    "deletion": "deletion %",
}
BY_CLASS = HEADINGS | {"constancy": "one place %"} | FOUND
MAX_CLASSES = 40  # in a picture with images of each
SHOWN_SIDE = 2048  # pixels; pictures of larger images are reduced to it
LEGEND = (
    "error: of the class. F1+, F1-: Dice of object and background. PxAP: pixel average precision. pIoU: IoU over all "
    "pixels, at the mask's threshold and (max) at the best one. MaxBoxAcc, MaxBoxAccV2: boxes found, at the best "
    "threshold. GT-known, Top-1, Top-5 loc: boxes found at the mask's threshold, whatever the class is and with the "
    "right class among the first 1 or 5. M+: mean mask. false alarms: images without an object whose mask is not "
    "empty. border: share of the marked pixels within 8 % of the image's border."
)
FOUND_LEGEND = (
    "own, judge: images whose class is found in the whole image, in "
    "the marked region alone (X+) and in the rest (X-), by the model's own classifier and by one that has never met a "
    "mask. own: swapped: images cut by a mask of another class that are taken for that class. rival: what the judge "
    "finds where the rival's map is highest, in as many pixels. insertion, deletion: area under the judge's "
    "probability of the class while pixels come and go."
)


def class_table(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """`metrics_table` with a row per class, and the number of its images."""
    rows = {class_names[label]: figures for label, figures in evaluation.by_class().items()}
    keys = ("error", "f1_foreground", "mask_area", "border_share", "true_border_share", "constancy", *FOUND)
    return metrics_table(rows, ("images",), {key: BY_CLASS[key] for key in keys}, "class")


def class_cases(evaluation: Evaluation) -> list[int]:
    """The index of an image of each class, of median quality as in `ranked_cases`; of `MAX_CLASSES` at most."""
    ranked: dict[int, list[int]] = {}
    targets = {row["index"]: row["target"] for row in evaluation.rows}
    for index in ranked_cases(evaluation):
        ranked.setdefault(targets[index], []).append(index)
    return [indices[len(indices) // 2] for _, indices in sorted(ranked.items())[:MAX_CLASSES]]


def metrics_table(
    rows: dict[str, dict[str, float]],
    extra: Sequence[str] = (),
    headings: dict[str, str] = HEADINGS,
    of: str = "method",
) -> str:
    """A Markdown table with a row per method and a column per metric, aligned for the terminal as well.

    Args:
        rows: metrics by the name of the method; what a row has not is shown as "-".
        extra: further keys that are shown as they are.
        headings: of the metrics, in the order of the columns.
        of: what a row is of, the heading of the names.
    """
    keys = [key for key in headings if any(key in metrics for metrics in rows.values())]
    lines = [[of, *(headings[key] for key in keys), *extra]]
    for name, metrics in rows.items():
        figures = [f"{100 * metrics[key]:.1f}" if key in metrics else "-" for key in keys]
        lines.append([name, *figures, *(str(metrics.get(key, "-")) for key in extra)])
    return table_text(lines)


def table_text(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as a Markdown table, the first line its head, aligned for the terminal as well.

    Args:
        lines: cells by line.
        left: number of columns that are aligned to the left.
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([row(lines[0]), row(rule), *(row(line) for line in lines[1:])])


def ranked_cases(evaluation: Evaluation) -> list[int]:
    """Indices of images from the worst to the best: by F1+ those with a mask, or else by the class."""
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
    """A row per image: the image, its true mask, and the overlay of each model with the class it predicts.

    The masks are cut at `threshold`, by default at each model's `mask_threshold`.
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
