"""Several classes an image: which classes the background term should speak of, on bundled images.

    python benchmarks/multilabel.py --output docs/results/multilabel.md

An image is two bundled images side by side, of six textures drawn at random. Four of them are labelled, so that an
image has two, one or none of the classes. Every row is trained for the same number of images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minmax_entropy as mme
from minmax_entropy.cli.demo import SIZE
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import get_recipe
from minmax_entropy.losses import binary_uniform_cross_entropy
from minmax_entropy.metrics import dice

CLASSES, TEXTURES, BATCH = 4, 6, 16
MODEL = {"name": "wsl_test_resnet", "out_index": 1, "stem_type": "deep_tiered", "img_size": (SIZE, 2 * SIZE)}
AREA = {"preset": "area", "localizer": "average", "classifier_scale": 0.75}
ROWS = {
    "CAM": {"preset": "cam"},
    "background term of the image's classes": AREA,
    "background term of all classes": AREA,
}


class EveryClass(mme.MinMaxEntropyLoss):
    """The background term of all classes, those that the image does not have included."""

    def background(self, logits: Tensor, target: Tensor) -> Tensor:
        return binary_uniform_cross_entropy(logits).sum(dim=1)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Images `[N, 3, H, W]` in [0, 1], labels `[N, K]`, and object pixels by class, bool `[N, K, H, W]`."""
    tiles = SyntheticShapes(2 * count, SIZE, TEXTURES, seed)
    order = np.random.default_rng(seed).permutation(2 * count).reshape(count, 2)
    images = np.stack([np.concatenate([np.asarray(tiles.image(i)) for i in pair], axis=1) for pair in order])
    masks = np.zeros((count, TEXTURES, SIZE, 2 * SIZE), dtype=bool)
    for row, pair in enumerate(order):
        for column, index in enumerate(pair):
            masks[row, tiles.target(index), :, column * SIZE : (column + 1) * SIZE] |= tiles.mask(index)
    masks = masks[:, :CLASSES]
    labels = torch.from_numpy(masks.any(axis=(2, 3))).float()
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, labels, masks


def train(model: mme.WSLModel, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    recipe = get_recipe("scratch")
    optimizer = recipe.build_optimizer(model)
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // BATCH
    erasing_steps = model.erasing.steps
    for epoch in range(epochs):
        model.train().erasing.steps = erasing_steps if epoch >= recipe.erasing_from_epoch else 0
        for step, index in enumerate(torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch, (epoch * steps + step) / (epochs * steps))
            batch = images[index]
            flipped = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(flipped[:, None, None, None], batch.flip(-1), batch)
            model(batch, labels[index]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.inference_mode()
def evaluate(model: mme.WSLModel, images: Tensor, labels: Tensor, masks: np.ndarray) -> dict[str, float]:
    """Shares in percent, as means: wrong labels; Dice of the mask, and of a class's own mask, where there is one."""
    model.eval()
    wrong, united, single = [], [], []
    for image, label, mask in zip(images.split(50), labels.split(50), np.split(masks, len(masks) // 50), strict=True):
        output, by_class = model(image), model.localize(image, classes="all").mask.numpy()
        wrong.append(((output.logits >= 0) != label.bool()).float().mean().item())
        for found, each, truth in zip(output.mask[:, 0].numpy(), by_class, mask, strict=True):
            if truth.any():
                united.append(dice(found >= 0.5, truth.any(axis=0)))
            single.extend(dice(each[k] >= 0.5, truth[k]) for k in range(CLASSES) if truth[k].any())
    return {"error": 100 * np.mean(wrong), "united": 100 * np.mean(united), "single": 100 * np.mean(single)}


def results(row: str, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    for seed in range(args.seeds):
        images, labels, _ = draw(args.images, 2 * seed)
        mean, std = images.mean(dim=(0, 2, 3), keepdim=True), images.std(dim=(0, 2, 3), keepdim=True)
        torch.manual_seed(seed)
        model = mme.create_model(num_classes=CLASSES, task="multilabel", **MODEL, **ROWS[row])
        if row.endswith("all classes"):
            model.criterion = EveryClass(size_loss="area", task="multilabel")
        train(model, (images - mean) / std, labels, args.epochs, seed)
        test, test_labels, masks = draw(300, 2 * seed + 1)
        yield evaluate(model, (test - mean) / std, test_labels, masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="Markdown table; printed in any case")
    args = parser.parse_args()
    lines = ["| method | wrong labels % | F1+ % | F1+ of a class's own mask % |", "| --- | ---: | ---: | ---: |"]
    print("\n".join(lines), flush=True)
    for row in ROWS:
        started = time.perf_counter()
        figures = list(results(row, args))
        cells = [" ".join(f"{each[key]:.1f}" for each in figures) for key in ("error", "united", "single")]
        lines.append(f"| {row} | {' | '.join(cells)} |")
        print(lines[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
