"""Time of the metrics of an image, as ratios to F1 and PxAP alone in the same run; and what a finer grid changes.

    python benchmarks/metrics.py --output docs/results/metrics.md

Masks as a model gives them: a map of random numbers, enlarged, min-max scaled, through the sigmoid. A trained model's
are smoother. Rows that label every threshold by itself are other ways to the same boxes; OpenCV's is left out where it
is not installed. Each figure is the least processor time of several; rows take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from minmax_entropy.data import SyntheticShapes
from minmax_entropy.mask import min_max_normalize, resize
from minmax_entropy.metrics import BoxAccuracy, LocalizationMeter, box_overlaps, region_boxes

SIZE = (375, 500)
MAPS = {"12 x 16 map": (12, 16), "24 x 32 map": (24, 32), "47 x 63 map": (47, 63), "noise": None}
BOX = [(100, 50, 300, 300)]
BASE = "F1+, F1-, PxAP, pIoU"


def random_mask(size: tuple[int, int] | None, rng: np.random.Generator) -> np.ndarray:
    """A mask of `SIZE` from a map of random numbers, or noise, float32 in [0, 1]."""
    if size is None:
        return rng.random(SIZE, dtype=np.float32)
    maps = torch.from_numpy(rng.random((1, 1, *size), dtype=np.float32))
    return torch.sigmoid(8 * (min_max_normalize(resize(maps, SIZE)) - 0.5))[0, 0].numpy()


def one_by_one(label: Callable[[np.ndarray], object], levels: int = 100) -> Callable[[np.ndarray], None]:
    def run(mask: np.ndarray) -> None:
        for k in range(levels):
            label(mask >= k / levels)

    return run


def scipy_boxes(mask: np.ndarray) -> tuple:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return ndimage.find_objects(labels), np.bincount(labels.ravel(), minlength=count + 1)


def rows(target: np.ndarray) -> dict[str, Callable[[np.ndarray], object]]:
    found = {
        BASE: lambda mask: LocalizationMeter().update(mask, target, True),
        "the same and all box metrics": lambda mask: LocalizationMeter().update(mask, target, True, boxes=BOX),
        "boxes at 100 thresholds": lambda mask: box_overlaps(mask, BOX),
        "boxes at 1000 thresholds": lambda mask: box_overlaps(mask, BOX, 1000),
        "one by one: region_boxes, 100": one_by_one(region_boxes),
        "one by one: scipy.ndimage.label, 100": one_by_one(scipy_boxes),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        label = one_by_one(lambda mask: cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8))
        found["one by one: OpenCV, 100"] = label
    return found


def measure(run: Callable[[np.ndarray], object], mask: np.ndarray) -> float:
    """Processor time, ms."""
    started = time.process_time()
    run(mask)
    return 1000 * (time.process_time() - started)


def peak(run: Callable[[np.ndarray], object], mask: np.ndarray) -> float:
    """Largest memory on top of what there was, MiB."""
    tracemalloc.start()
    run(mask)
    found = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return found


def timings(turns: int) -> list[str]:
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.random(SIZE), 30)
    target = field > np.quantile(field, 0.7)
    lines = ["| mask | row | ms | time, ratio | peak MiB |", "| --- | --- | ---: | ---: | ---: |"]
    for name, size in MAPS.items():
        mask, ways = random_mask(size, rng), rows(target)
        if size is None:
            del ways["boxes at 1000 thresholds"]  # half a minute
        found = [{row: measure(run, mask) for row, run in ways.items()} for _ in range(turns)]
        best = {row: min(turn[row] for turn in found) for row in ways}
        for row, run in ways.items():
            ratio = best[row] / best[BASE]
            lines.append(f"| {name} | {row} | {best[row]:.1f} | {ratio:.1f} | {peak(run, mask):.0f} |")
            print(lines[-1], flush=True)
    return lines


def grids(images: int) -> list[str]:
    """MaxBoxAcc and MaxBoxAccV2 of one set of masks at several grids: true masks, blurred, with clutter."""
    data = SyntheticShapes(images, seed=1)
    rng = np.random.default_rng(1)
    grids = {levels: BoxAccuracy(levels) for levels in (20, 50, 100, 1000)}
    for index in range(images):
        clutter = ndimage.gaussian_filter(rng.random(data.mask(index).shape), 3)
        mask = ndimage.gaussian_filter(data.mask(index).astype(float), 3) + 8 * clutter
        mask = (mask - mask.min()) / np.ptp(mask)
        for accuracy in grids.values():
            accuracy.update(mask, data.boxes(index))
    lines = ["| thresholds | MaxBoxAcc % | MaxBoxAccV2 % |", "| ---: | ---: | ---: |"]
    for levels, accuracy in grids.items():
        found = accuracy.compute()
        lines.append(f"| {levels} | {100 * found['max_box_acc']:.2f} | {100 * found['max_box_acc_v2']:.2f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=300, help="of the comparison of grids")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"`python benchmarks/metrics.py --turns {options.turns} --images {options.images}`, one CPU thread, masks of "
        f"{SIZE[0]} x {SIZE[1]} pixels, NumPy {np.__version__}, Python {platform.python_version()}. Ratios are to the "
        f'row "{BASE}" of the same mask. Rows "one by one" label each of 100 thresholds by itself, without the IoU.',
        "",
        *timings(options.turns),
        "",
        f"MaxBoxAcc and MaxBoxAccV2 by the number of thresholds, on {options.images} synthetic images whose masks are "
        "the true ones, blurred, with smooth noise on top:",
        "",
        *grids(options.images),
    ]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
