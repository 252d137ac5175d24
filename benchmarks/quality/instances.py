"""What models say of several objects in an image, and of images without any, on the bundled synthetic images.

    python benchmarks/quality/instances.py runs/shapes/runs/wsl_test_resnet/{cam-avg,refined}/seed*/model

A first table: F1+ by the number of objects, and the share of the objects that are found (half of their pixels marked);
then the same with maps on a fixed scale, the mean lowest and highest value on validation images, in the place of each
image's own range, which has a highest place in every image. A second table: how well a score tells images with objects
from those of the clutter alone, as the area under the ROC curve, and the share of the empty images below the score that
95 % of the other images reach. Each is the mean over the models of a folder's name (`cam-avg`, `refined`). Masks are
those of all views that a model recommends; maps on a fixed scale, and scores, are of images at their own size.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import minmax_entropy as mme
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import preprocess_for
from minmax_entropy.mask import resize, soft_mask, weighted_map
from minmax_entropy.metrics import dice

BATCH = 50
KEPT = 0.05  # of the images with objects may lie below the score


class Answers(NamedTuple):
    """Of a model for N images of `[H, W]`."""

    masks: np.ndarray  # bool [N, H, W]
    maps: np.ndarray  # [N, H, W], what the masks are made of, before it is brought to [0, 1]
    scores: dict[str, np.ndarray]  # by name, [N] each

    def on_scale(self, low: float, high: float, model: mme.WSLModel) -> np.ndarray:
        """Masks `[N, H, W]` of maps whose range is the same for all images."""
        maps = torch.from_numpy((self.maps - low) / (high - low))
        return soft_mask(maps, model.evaluation_sigma(), model.mask_omega).numpy() >= model.mask_threshold


@torch.inference_mode()
def answers(model: mme.WSLModel, data: SyntheticShapes) -> Answers:
    preprocess = preprocess_for(model)
    masks, maps, scores = [], [], collections.defaultdict(list)
    for start in range(0, len(data), BATCH):
        images = torch.stack([preprocess(data.image(i)) for i in range(start, min(start + BATCH, len(data)))])
        output = model(images, background=model.classifier is not None)
        masks.append(output.mask[:, 0].numpy() >= model.mask_threshold)
        region = weighted_map(output.localizer_maps, model.map_weights(output.localizer_logits))
        region = region if model.refinement is None else model.refinement(region, images)
        maps.append(resize(region, images.shape[-2:])[:, 0].numpy())
        best = output.localizer_logits.argmax(dim=1)
        own = output.localizer_maps[torch.arange(len(best)), best].flatten(1)  # [B, h * w]
        found = {
            "probability": output.logits.softmax(dim=1).amax(dim=1),
            "logit": output.logits.amax(dim=1),
            "highest of the class's map": own.amax(dim=1),
            "range of the class's map": own.amax(dim=1) - own.amin(dim=1),
        }
        if output.background_logits is not None:
            on_background = output.background_logits.softmax(dim=1).amax(dim=1)
            found["probability, less that on X-"] = found["probability"] - on_background
        for name, values in found.items():
            scores[name] += values.tolist()
    scores = {name: np.array(values) for name, values in scores.items()}
    return Answers(np.concatenate(masks), np.concatenate(maps), scores)


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score is over a negative one, ties counted half."""
    difference = positive[:, None] - negative[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--length", type=int, default=1000, help="images with objects, and without")
    args = parser.parse_args()
    data, valid = (SyntheticShapes(args.length, seed=seed) for seed in (1000, 1002))
    empty = SyntheticShapes(args.length, seed=1001, empty=True)
    counts = np.array([len(data.instances(index)) for index in range(len(data))])
    by_count, by_score = collections.defaultdict(list), collections.defaultdict(list)
    for path in args.models:
        name = path.parts[-3]
        model = mme.create_model(f"local-dir:{path}").eval()
        found, nothing, known = (answers(model, each) for each in (data, empty, valid))
        scale = known.maps.min(axis=(1, 2)).mean(), known.maps.max(axis=(1, 2)).mean(), model
        for row, masks, marked in (
            (name, found.masks, nothing.masks),
            (f"{name}, fixed scale", found.on_scale(*scale), nothing.on_scale(*scale)),
        ):
            for count in sorted(set(counts)):
                chosen = np.flatnonzero(counts == count)
                f1 = np.mean([dice(masks[i], data.mask(i)) for i in chosen])
                objects = [(masks[i] & one).sum() >= 0.5 * one.sum() for i in chosen for one in data.instances(i)]
                by_count[row, int(count)].append((len(chosen), f1, np.mean(objects)))
            by_count[row, 0].append((len(empty), float("nan"), marked.mean()))
        for score, values in found.scores.items():
            least = np.quantile(known.scores[score], KEPT)
            rates = [(answer.scores[score] < least).mean() for answer in (nothing, found)]
            by_score[name, score].append((area_under_curve(values, nothing.scores[score]), *rates))
    print("| method | objects | images | F1+ % | objects found %, or pixels marked % where there is none |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for (name, count), rows in sorted(by_count.items()):
        images, f1, share = np.mean(rows, axis=0)
        print(f"| {name} | {count} | {images:.0f} | {'-' if count == 0 else f'{100 * f1:.1f}'} | {100 * share:.1f} |")
    print("\n| method | score | area under the curve % | empty images refused % | others refused % |")
    print("| --- | --- | ---: | ---: | ---: |")
    for (name, score), rows in by_score.items():
        print(f"| {name} | {score} | {' | '.join(f'{100 * value:.1f}' for value in np.mean(rows, axis=0))} |")


if __name__ == "__main__":
    main()
