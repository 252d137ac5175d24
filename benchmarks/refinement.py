"""What a chosen threshold, averaging over views and refinement bring to F1+.

    python benchmarks/refinement.py --output docs/results/refinement.md
    python benchmarks/refinement.py --plugin examples/squeezenet_backbone.py --model runs/area/model --data pascal20 ...

Without `--model`, the demo's model is trained first (about half a minute on one core) and bundled images serve:
300 to choose the threshold on, 300 others to test. With it, a saved model and the `valid` and `test` parts of its data.
Every row has the threshold of the highest mean F1+ on the first images, and F1+ on the second with 0.5 and with that.
The time of a refinement is its own. It needs the extras `refine` and `crf`.
"""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path

import numpy as np

import minmax_entropy as mme
from minmax_entropy.cli.demo import EPOCHS, OURS, SIZE, TRAIN_IMAGES, train_method
from minmax_entropy.data import LabelledImages, SyntheticShapes, open_split
from minmax_entropy.engine import Inference, create_refinement, predict_images
from minmax_entropy.engine.threshold import THRESHOLDS, DiceCurve
from minmax_entropy.inference.filters import refine_mask

VIEWS = {
    "as it is": Inference(scales=(1.0,)),
    "horizontal flip": Inference(flips=("horizontal",), scales=(1.0,)),
    "scales 0.75, 1, 1.25": Inference(scales=(1.0, 0.75, 1.25)),
    "flip and scales": Inference(flips=("horizontal",), scales=(1.0, 0.75, 1.25)),
}
REFINEMENTS = {
    "guided filter, radius 0.04": create_refinement("guided_filter", radius=0.04),
    "guided filter, radius 0.08": create_refinement("guided_filter", radius=0.08),
    "guided filter, radius 0.16": create_refinement("guided_filter", radius=0.16),
    "dense CRF, weight 4": create_refinement("dense_crf", weight=4.0),
    "dense CRF, weight 10": create_refinement("dense_crf", weight=10.0),
}


class Row:
    """Figures of one way to predict."""

    def __init__(self) -> None:
        self.valid, self.test = DiceCurve(), DiceCurve()
        self.errors = self.seconds = 0.0

    def line(self, name: str) -> str:
        best = int(self.valid.mean().argmax())
        half, chosen = (100 * self.test.mean()[index] for index in (int(np.abs(THRESHOLDS - 0.5).argmin()), best))
        milliseconds = 1000 * self.seconds / (self.valid.images + self.test.images)
        error = 100 * self.errors / self.test.images
        return f"| {name} | {error:.1f} | {half:.1f} | {THRESHOLDS[best]:.2f} | {chosen:.1f} | {milliseconds:.0f} |"


def measure(
    model: mme.WSLModel, dataset: LabelledImages, part: str, inference: Inference, row: Row, refined: dict[str, Row]
) -> None:
    """Add a part of the data to a row, and its refined masks to theirs."""
    images = ((index, dataset.image(index)) for index in range(len(dataset)))
    started = time.perf_counter()
    for prediction in predict_images(model, images, inference=inference):
        row.seconds += time.perf_counter() - started
        image, target = dataset.image(prediction.index), dataset.mask(prediction.index)
        wrong = part == "test" and prediction.class_index != dataset.target(prediction.index)
        for name, each in {"": row, **refined}.items():
            begun = time.perf_counter()
            mask = refine_mask(REFINEMENTS[name], image, prediction.mask) if name else prediction.mask
            each.seconds += time.perf_counter() - begun if name else 0.0
            getattr(each, part).update(mask, target)
            each.errors += wrong
        started = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a saved model")
    parser.add_argument("--data", type=Path, help="folder of its data")
    parser.add_argument("--plugin", help="Python file to run first")
    parser.add_argument("--refined", nargs="*", default=["as it is"], choices=list(VIEWS))
    parser.add_argument("--output", type=Path, help="Markdown table; printed in any case")
    args = parser.parse_args()
    if args.plugin:
        runpy.run_path(args.plugin)
    if args.model:
        model = mme.create_model(f"local-dir:{args.model}")
        valid, test = (open_split(args.data, split, model.class_names) for split in ("valid", "test"))
    else:
        train, test, valid = (SyntheticShapes(n, SIZE, seed=s) for n, s in ((TRAIN_IMAGES, 0), (300, 1), (300, 3)))
        model = train_method(OURS, train, test, 0, EPOCHS, None)[0]

    lines = [
        "| masks | error % | F1+ % at 0.5 | threshold | F1+ % there | ms an image |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    for name, inference in VIEWS.items():
        row = Row()
        refined = {title: Row() for title in REFINEMENTS} if name in args.refined else {}
        for dataset, part in ((valid, "valid"), (test, "test")):
            measure(model, dataset, part, inference, row, refined)
        lines += [row.line(name), *(other.line(f"{name}, {title}") for title, other in refined.items())]
        print("\n".join(lines[-1 - len(refined) :]), flush=True)
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
