"""Demo: training on bundled synthetic images, beside a plain CAM, with figures, pictures and a saved model."""

from __future__ import annotations

import copy
import itertools
import time
from pathlib import Path

import torch
from huggingface_hub.utils import tqdm
from PIL import Image
from torch import Tensor

from minmax_entropy._progress import progress_bar
from minmax_entropy.benchmark.methods import Method, get_method
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.data.subsets import targets_of
from minmax_entropy.engine import Recipe, evaluate, evaluate_all_ones, get_recipe, preprocess_for
from minmax_entropy.engine.cases import case_grid
from minmax_entropy.factory import create_model
from minmax_entropy.metrics.names import LEGEND
from minmax_entropy.report.pictures import save_picture
from minmax_entropy.report.tables import metrics_table
from minmax_entropy.wsl import WSLModel

TRAIN_IMAGES, TEST_IMAGES, SIZE = 2000, 300, 64
EPOCHS = 5
PICTURES = 6
EXAMPLES = 3

# A small ResNet whose features keep a quarter of the image's resolution; settings chosen in docs/results/demo.md.
MODEL = dict(name="wsl_test_resnet", img_size=SIZE, out_index=1, stem_type="deep_tiered")

CAM = Method("CAM baseline", dict(MODEL, preset="cam"))
OURS = Method("min-max entropy", dict(MODEL, preset="refined"))
CAM_REFINED = "CAM baseline, refined"  # the same weights, with a refinement and in the same views as ours
# Erasing makes masks larger, which calls for a higher threshold (docs/results/localization_appendix.md).
TWO_PASSES = dict(mask_refinement=dict(sigma=0.6))
ERASING = Method("min-max entropy + erasing", OURS.settings | TWO_PASSES, dict(erasing_steps=2))


def run_demo(output: Path, seed: int = 0, epochs: int = EPOCHS, train_images: int = TRAIN_IMAGES) -> dict[str, dict]:
    """Train and evaluate, print the table, and write pictures and a model.

    Args:
        output: folder; `overlays.png`, `examples/` and `model/` are written into it.
        seed: seed of the data and the training.
        epochs: epochs of our model without erasing; the other two train for as long as that took.
        train_images: number of training images.

    Returns:
        The metrics by the name of the method.
    """
    started = time.perf_counter()
    output = Path(output)
    print(f"{train_images} images of {SIZE} x {SIZE} pixels, textured objects on clutter; class labels only.")
    train, test = (
        SyntheticShapes(train_images, SIZE, seed=2 * seed),
        SyntheticShapes(TEST_IMAGES, SIZE, seed=2 * seed + 1),
    )
    for dataset, text in ((train, "draw training images"), (test, "draw test images")):
        for index in progress_bar(range(len(dataset)), text):
            dataset.image(index)

    table: dict[str, dict] = {"all-ones": evaluate_all_ones(test, boxes=False)}
    models: dict[str, WSLModel] = {}
    seconds = None
    for method in (OURS, ERASING, CAM):
        models[method.title], table[method.title], trained = train_method(method, train, test, seed, epochs, seconds)
        seconds = seconds or trained
    refined = copy.deepcopy(models[CAM.title])
    for name, value in get_method("cam-refined-scales").evaluated_with.items():
        setattr(refined, name, value)
    table[CAM_REFINED] = evaluate(refined, test, batch_size=50, boxes=False).metrics
    rows = {name: table[name] for name in ("all-ones", CAM.title, CAM_REFINED, OURS.title, ERASING.title)}
    print()
    print(metrics_table(rows, extra=("epochs", "seconds")))
    print(LEGEND)

    shown = {name: models[name] for name in (CAM.title, OURS.title, ERASING.title)}
    save_picture(case_grid(shown, test, range(PICTURES)), output / "overlays.png")
    for index in range(EXAMPLES):
        save_picture(test.image(index), output / "examples" / f"{index}_{test.class_names[test.target(index)]}.png")
    best = max((OURS.title, ERASING.title), key=lambda name: table[name]["f1_foreground"])
    models[best].save_pretrained(output / "model", class_names=test.class_names, metrics=_numbers(table[best]))
    _print_next(output, best, time.perf_counter() - started)
    return rows


def train_method(
    method: Method, train: SyntheticShapes, test: SyntheticShapes, seed: int, epochs: int, seconds: float | None
) -> tuple[WSLModel, dict, float]:
    """Train for `epochs`, or for `seconds` if they are given, and evaluate."""
    torch.manual_seed(seed)
    model = create_model(num_classes=len(train.class_names), **method.settings)
    preprocess = preprocess_for(model)
    images = torch.stack([preprocess(train.image(index)) for index in range(len(train))])
    target = torch.tensor(targets_of(train))
    recipe = get_recipe("scratch", **method.recipe)
    started = time.perf_counter()
    with progress_bar(None, method.title, total=100, bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}") as bar:
        trained = _train(model, images, target, recipe, epochs, seconds, bar)
    model.erasing.steps = 0
    seconds = time.perf_counter() - started
    metrics = evaluate(model, test, batch_size=50, boxes=False).metrics
    return model, {**metrics, "epochs": trained, "seconds": round(seconds)}, seconds


def _train(
    model: WSLModel, images: Tensor, target: Tensor, recipe: Recipe, epochs: int, seconds: float | None, bar: tqdm
) -> int:
    """Train in a plain PyTorch loop, and return the number of epochs that were begun.

    `minmax_entropy.engine.fit` offers more; this loop needs the core alone, and can train for a given time.
    """
    optimizer = recipe.build_optimizer(model)
    model.train().to(memory_format=torch.channels_last)
    steps = len(images) // recipe.batch_size
    started = time.perf_counter()
    for epoch in itertools.count():
        model.erasing.steps = (recipe.erasing_steps or 0) if epoch >= recipe.erasing_from_epoch else 0
        for step, batch in enumerate(torch.randperm(len(images))[: steps * recipe.batch_size].view(steps, -1)):
            done = (time.perf_counter() - started) / seconds if seconds else (epoch + step / steps) / epochs
            if done >= 1:
                return epoch + (step > 0)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch, done)
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            inputs = torch.where(flipped, images[batch].flip(-1), images[batch])
            model.criterion.size_share = recipe.size_share_at(done)
            output = model(inputs.contiguous(memory_format=torch.channels_last), target[batch])
            model.criterion.size_share = 1.0
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            if step % 10 == 0:
                bar.n = round(100 * done)
                area = float(output.mask.detach().mean())
                bar.set_postfix_str(f"epoch {epoch} loss {float(output.loss.detach()):.2f} M+ {area:.2f}")


def _numbers(metrics: dict) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in metrics.items()}


def _print_next(output: Path, best: str, seconds: float) -> None:
    with Image.open(output / "overlays.png") as picture:
        size = f"{picture.width} x {picture.height}"
    print(
        f"""
{seconds:.0f} s in all. Pictures ({size}): {output / "overlays.png"}. Model ({best}): {output / "model"}.

Next, try
  minmax-entropy predict {output / "examples"} --model {output / "model"} --output {output / "predictions"}
  python -c 'import minmax_entropy; print(minmax_entropy.create_model("local-dir:{output / "model"}"))'
  minmax-entropy train --data FOLDER --model wsl_resnet50 --pretrained
"""
    )
