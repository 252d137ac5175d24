"""What models say of several objects in an image, and of images without any, on the embedded data.

    python benchmarks/quality/instances.py runs/shapes/runs/wsl_test_resnet/{cam-avg,refined}/seed*/model

A first table: F1+ by the number of objects, and the share of the objects that are found (half of their pixels marked).
A second one: how well a score tells images with objects from those of the clutter alone, as the area under the ROC
curve, and the share of the empty images below the score that 95 % of the other images reach. Each is the mean over the
models of a folder's name (`cam-avg`, `refined`).
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import numpy as np
import torch

import minmax_entropy as mme
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import preprocess_for
from minmax_entropy.metrics import dice

BATCH = 50
KEPT = 0.05  # of the images with objects may lie below the score


@torch.inference_mode()
def answers(model: mme.WSLModel, data: SyntheticShapes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Masks `[N, H, W]` as bool, and scores by name, `[N]` each."""
    preprocess = preprocess_for(model)
    masks, scores = [], collections.defaultdict(list)
    for start in range(0, len(data), BATCH):
        images = torch.stack([preprocess(data.image(i)) for i in range(start, min(start + BATCH, len(data)))])
        output = model(images, background=model.classifier is not None)
        masks.append(output.mask[:, 0].numpy() >= model.mask_threshold)
        best = output.localizer_logits.argmax(dim=1)
        own = output.localizer_maps[torch.arange(len(best)), best].flatten(1)  # [B, h * w]
        found = {
            "probability": output.logits.softmax(dim=1).amax(dim=1),
            "logit": output.logits.amax(dim=1),
            "highest of the class's map": own.amax(dim=1),
            "range of the class's map": own.amax(dim=1) - own.amin(dim=1),
        }
        if output.background_logits is not None:
            found["probability, less that on X-"] = found["probability"] - output.background_logits.softmax(dim=1).amax(
                dim=1
            )
        for name, values in found.items():
            scores[name] += values.tolist()
    return np.concatenate(masks), {name: np.array(values) for name, values in scores.items()}


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score is over a negative one, ties counted half."""
    difference = positive[:, None] - negative[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--length", type=int, default=1000)
    args = parser.parse_args()
    data = SyntheticShapes(args.length, seed=1000)
    empty = SyntheticShapes(args.length, seed=1001, empty=True)
    counts = np.array([len(data.instances(index)) for index in range(len(data))])
    by_count, by_score = collections.defaultdict(list), collections.defaultdict(list)
    for path in args.models:
        name = path.parts[-3]
        model = mme.create_model(f"local-dir:{path}").eval()
        masks, scores = answers(model, data)
        marked, empty_scores = answers(model, empty)
        for count in sorted(set(counts)):
            chosen = np.flatnonzero(counts == count)
            f1 = np.mean([dice(masks[i], data.mask(i)) for i in chosen])
            found = np.mean([(masks[i] & one).sum() >= 0.5 * one.sum() for i in chosen for one in data.instances(i)])
            by_count[name, int(count)].append((len(chosen), f1, found))
        by_count[name, 0].append((len(empty), float("nan"), marked.mean()))
        for score, values in scores.items():
            least = np.quantile(values, KEPT)
            refused = (empty_scores[score] < least).mean()
            by_score[name, score].append((area_under_curve(values, empty_scores[score]), refused))
    print("| method | objects | images | F1+ % | objects found %, or pixels marked % where there is none |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for (name, count), rows in sorted(by_count.items()):
        images, f1, found = np.mean(rows, axis=0)
        print(f"| {name} | {count} | {images:.0f} | {'-' if count == 0 else f'{100 * f1:.1f}'} | {100 * found:.1f} |")
    print("\n| method | score | area under the curve % | empty images refused % |\n| --- | --- | ---: | ---: |")
    for (name, score), rows in by_score.items():
        print(f"| {name} | {score} | {' | '.join(f'{100 * value:.1f}' for value in np.mean(rows, axis=0))} |")


if __name__ == "__main__":
    main()
