"""Model card of a saved model: a description, how to use it, its figures, and an example."""

from __future__ import annotations

import json
import math
import numbers
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from torch import nn

from minmax_entropy._modes import in_evaluation
from minmax_entropy.data import preprocess_for, read_image
from minmax_entropy.hub.names import CARD_NAME, EXAMPLE_NAME
from minmax_entropy.metrics.names import HEADINGS, LEGEND
from minmax_entropy.report.pictures import grid, overlay, save_picture
from minmax_entropy.tasks import TASKS

# A card with this line is rewritten at the next saving; a card without it is a user's own.
MARK = "<!-- Written by minmax_entropy at each saving. Remove this line to keep a text of your own. -->"
CELL = 320  # pixels, side of each picture in the example
MAX_CLASSES = 50  # that are listed by name

WHAT_IT_DOES = {
    "multiclass": "decides which one class an image shows, and marks the pixels that the decision rests on",
    "multilabel": "decides for each of its classes whether an image shows it, and marks the pixels that this rests on",
}

BODY = """
{mark}

# {title}

A model for weakly supervised localization: trained with image-level class labels alone, it {task}.
Method: min-max entropy with recursive erasing ([arXiv 1907.12934](https://arxiv.org/abs/1907.12934)).
{example}
{facts}

## Use

{where}```python
{snippet}
```

## Figures

{metrics}
"""

SNIPPET = """
import minmax_entropy

model = minmax_entropy.create_model({source})
predictor = minmax_entropy.Predictor(model)  # takes files, folders, PIL images, arrays and tensors
prediction = predictor("image.jpg")
probabilities = prediction.probabilities  # [{classes}]
mask = prediction.mask  # [height, width] in [0, 1]
prediction.overlay().save("overlay.png")
"""

SNIPPET_OF_LABELS = """
import torch
from PIL import Image

import minmax_entropy
from minmax_entropy.data import preprocess_for

model = minmax_entropy.create_model({source}).eval()
preprocess = preprocess_for(model)
image = Image.open("image.jpg")
with torch.inference_mode():
    output = model(preprocess(image).unsqueeze(0))
probabilities = output.logits[0].sigmoid()  # [{classes}]
mask = preprocess.restore(output.mask[0], (image.height, image.width))  # [1, height, width] in [0, 1]
"""

SNIPPET_OF_TENSORS = """
import torch

import minmax_entropy

model = minmax_entropy.create_model({source}).eval()
images = torch.randn(1, {channels}, {height}, {width})  # your images, normalized with model.data_config's mean and std
with torch.inference_mode():
    output = model(images)
probabilities = output.logits.{probabilities}  # [1, {classes}]
mask = output.mask  # [1, 1, {height}, {width}] in [0, 1]
"""


def model_card(
    model: nn.Module,
    source: str,
    *,
    class_names: list[str] | None = None,
    info: dict[str, Any] | None = None,
    has_example: bool = False,
) -> ModelCard:
    """Return the card of a model.

    Args:
        model: the model.
        source: name by which `create_model` loads it, "hf-hub:ORG/NAME" or "local-dir:PATH".
        class_names: names of the classes; by default the model's.
        info: `license`, `training_data`, `metrics`, `backbone_weights`, as far as known; by default the model's.
        has_example: whether `example.png` is beside the card.
    """
    info = model.info if info is None else info
    class_names = model.class_names if class_names is None else class_names
    about = type(model)._hub_mixin_info.model_card_data.to_dict()
    data_sets = info.get("training_data")
    data = ModelCardData(
        **about,
        license=info.get("license"),
        base_model=info.get("backbone_weights"),
        datasets=data_sets if isinstance(data_sets, list) else None,
        metrics=sorted(info["metrics"]) if info.get("metrics") else None,
    )
    body = BODY.format(
        mark=MARK,
        title=_cell(source.split(":", 1)[1].replace("`", "'")),
        task=WHAT_IT_DOES[model.task],
        example=f"\n![An image, and what the model marks in it]({EXAMPLE_NAME})\n" if has_example else "",
        facts=_facts(model, class_names, info),
        snippet=_snippet(model, source),
        where="In the folder that holds this one:\n\n" if source.startswith("local-dir:") else "",
        metrics=_metrics(info.get("metrics")),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def write_card(
    model: nn.Module,
    directory: Path,
    source: str,
    *,
    class_names: list[str] | None,
    info: dict[str, Any],
    example: str | Path | Image.Image | None = None,
) -> None:
    """Write `README.md`, and `example.png` if an image is given for it; a card that a user wrote is kept."""
    for name in (CARD_NAME, EXAMPLE_NAME):
        if (directory / name).is_symlink():  # else its target would be overwritten
            (directory / name).unlink()
    path = directory / CARD_NAME
    earlier = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if earlier is not None and MARK in earlier:
        (directory / EXAMPLE_NAME).unlink(missing_ok=True)  # of the previous model
    if example is not None:
        save_example(model, example, directory / EXAMPLE_NAME, class_names)
    if earlier is None or MARK in earlier:
        card = model_card(model, source, class_names=class_names, info=info, has_example=example is not None)
        path.write_text(str(card), encoding="utf-8")


def save_example(
    model: nn.Module, example: str | Path | Image.Image, path: Path, class_names: list[str] | None = None
) -> None:
    """Save a picture of an image beside the pixels that the model marks in it, with the most probable class.

    Args:
        model: the model; its mode is kept.
        example: an image or its file.
        path: path of the PNG.
        class_names: names of the classes, in the order of the logits.

    Raises:
        ValueError: the model takes images of neither 1 nor 3 channels.
        OSError: the file can't be read.
    """
    image = example.convert("RGB") if isinstance(example, Image.Image) else read_image(example)
    preprocess = preprocess_for(model)
    with in_evaluation(model), torch.inference_mode():
        output = model(preprocess(image).unsqueeze(0).to(next(model.parameters())))
    mask = preprocess.restore(output.mask[0].float().cpu(), (image.height, image.width))[0].numpy()
    best = int(output.logits[0].argmax())
    if best in model.empty_classes:
        mask = np.zeros_like(mask)
    probability = float(TASKS[model.task].probabilities(output.logits)[0, best])
    caption = f"{class_names[best] if class_names else f'class {best}'} {probability:.2f}"
    save_picture(grid([[image, overlay(image, mask)]], ["image", "model"], [["", caption]], cell=CELL), path)


def _facts(model: nn.Module, class_names: list[str] | None, info: dict[str, Any]) -> str:
    """Return a table of facts, with "not stated" for those that are missing."""
    size = model.data_config["input_size"]
    trained_on = info.get("training_data") or "not stated"
    names = ", ".join((class_names or [])[:MAX_CLASSES])
    more = ", ..." if len(class_names or []) > MAX_CLASSES else ""
    empty = [class_names[index] if class_names else str(index) for index in model.empty_classes]
    rows = {
        "backbone": f"`{model.config['backbone']}`",
        "backbone's weights before training": info.get("backbone_weights") or "not stated",
        "classes": f"{model.num_classes}{': ' if names else ''}{names}{more}",
        "image size": f"{size[-2]} x {size[-1]} pixels, {size[0]} channels",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
        "trained on": trained_on if isinstance(trained_on, str) else ", ".join(trained_on),
        **({"classes without an object": ", ".join(empty)} if empty else {}),
        **({"nothing below": f"a probability of {model.min_probability:g}"} if model.min_probability else {}),
        "licence": info.get("license") or "not stated",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())])


def _metrics(metrics: dict[str, Any] | None) -> str:
    if not metrics:
        return "None were given when the model was saved."
    lines = []
    for name, value in metrics.items():
        value = value.tolist() if hasattr(value, "tolist") else value
        if name in HEADINGS and (value is None or isinstance(value, numbers.Real)):
            known = value is not None and math.isfinite(value)
            name, value = HEADINGS[name], f"{100 * value:.1f}" if known else "-"
        elif isinstance(value, float):
            value = f"{value:.4g}"
        lines.append(f"| {_cell(name)} | {_cell(value)} |")
    legend = f"\n\n{LEGEND}" if metrics.keys() & HEADINGS.keys() else ""
    return "\n".join(["| metric | value |", "| --- | ---: |", *lines]) + legend


def _cell(text: object) -> str:
    """Return a text, escaped for a cell of a table."""
    return " ".join(str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _snippet(model: nn.Module, source: str) -> str:
    channels, height, width = model.data_config["input_size"]
    of_pictures = SNIPPET_OF_LABELS if model.task == "multilabel" else SNIPPET
    template = of_pictures if channels in (1, 3) else SNIPPET_OF_TENSORS
    return template.format(
        source=json.dumps(source, ensure_ascii=False),
        channels=channels,
        height=height,
        width=width,
        classes=model.num_classes,
        probabilities="sigmoid()" if model.task == "multilabel" else "softmax(dim=-1)",
    ).strip()
