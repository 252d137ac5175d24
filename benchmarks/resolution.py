"""What a finer feature map brings, and what it costs: `output_stride`, `out_index` and `neck`, on bundled images.

    python benchmarks/resolution.py --output docs/results/resolution.md

Each row is trained from scratch as the demo trains, for the same number of images, and evaluated on 300 others. Cost is
the time of a training step of 16 images, as a ratio to the first row of the same backbone; rows are timed in turns and
the median counts. GFLOPs are those of `localize` for one image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import minmax_entropy as mme
from minmax_entropy.cli.demo import SIZE, Method, train_method
from minmax_entropy.data import SyntheticShapes

CLASSES = 6
METHOD = {"img_size": SIZE, "preset": "area", "localizer": "average", "classifier_scale": 0.75}
CNN = [
    {},
    {"output_stride": 16},
    {"output_stride": 8},
    {"out_index": -2},
    {"out_index": -3},
    {"out_index": -4},
    {"neck": "fpn"},
    {"neck": "fpn", "out_index": 1},
    {"neck": {"name": "fpn", "channels": 256}},
    {"neck": {"name": "fpn", "channels": 256}, "out_index": 1},
]
VIT = [{}, {"out_index": -3}, {"neck": "fpn"}, {"patch_size": 8}, {"patch_size": 8, "neck": "fpn"}]
BACKBONES = {
    "resnet": ({"name": "wsl_test_resnet", "stem_type": "deep_tiered"}, CNN),
    "vit": ({"name": "wsl_test_vit"}, VIT),
}


def label(options: dict) -> str:
    if not options:
        return "as it is"
    return ", ".join(f"`{key}={value!r}`" for key, value in options.items())


def step_seconds(models: list[mme.WSLModel], rounds: int) -> list[float]:
    """Median time of a training step of each model, taken in turns."""
    images, target = torch.randn(16, 3, SIZE, SIZE), torch.arange(16) % CLASSES
    times = [[] for _ in models]
    for _ in range(rounds + 1):
        for model, spent in zip(models, times, strict=True):
            started = time.perf_counter()
            model.train()(images, target).loss.backward()
            spent.append(time.perf_counter() - started)
    return [statistics.median(spent[1:]) for spent in times]


def gflops(model: mme.WSLModel) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().localize(torch.randn(1, 3, SIZE, SIZE))
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each row")
    parser.add_argument("--output", type=Path, default=None, help="Markdown table; printed in any case")
    args = parser.parse_args()

    lines = [
        "| backbone | options | stride | error % | F1+ % | PxAP % | GFLOPs | step |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    data = {
        seed: (SyntheticShapes(args.images, SIZE, seed=2 * seed), SyntheticShapes(300, SIZE, seed=2 * seed + 1))
        for seed in range(args.seeds)
    }
    for name in args.backbones:
        backbone, rows = BACKBONES[name]
        all_settings = [{**METHOD, **backbone, **options} for options in rows]
        models = [mme.create_model(num_classes=CLASSES, **settings) for settings in all_settings]
        seconds = step_seconds(models, args.rounds)
        for options, settings, model, spent in zip(rows, all_settings, models, seconds, strict=True):
            results = [
                train_method(Method(label(options), settings), *data[seed], seed, args.epochs, None)[1]
                for seed in range(args.seeds)
            ]
            figures = [
                " ".join(f"{100 * result[key]:.1f}" for result in results) for key in ("error", "f1_foreground", "pxap")
            ]
            line = (
                f"| {name} | {label(options)} | {model.backbone.reduction} | {' | '.join(figures)} "
                f"| {gflops(model):.3f} | {spent / seconds[0]:.2f} |"
            )
            lines.append(line)
            print(line, flush=True)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
