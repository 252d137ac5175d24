"""Drawn surfaces with defects, as files: a kind of image unlike photographs of objects, to check settings on.

    python benchmarks/quality/surfaces.py runs/surfaces
    python benchmarks/quality/surfaces.py runs/surfaces-good --good

Grey, 200 x 200: grain along a direction, uneven light, and a defect of one of five kinds, from hair-thin to a quarter
of the image. `train.csv` (60 a class), `valid.csv` (20) and `test.csv` (40) list `image,mask,class`; with `--good` the
classes are "defect", of half as many of each kind, and "good", of as many as these together. The same seed gives the
same files. Real surfaces are not drawn: this says whether settings break, not how good they are.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 200
COUNTS = {"train": 60, "valid": 20, "test": 40}


def noise(rng: np.random.Generator, grain: float, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise `[SIDE, SIDE]` of mean 0 and deviation 1, with grains of so many pixels, `stretch` times as wide."""
    shape = [max(round(SIDE / size), 4) for size in (grain, grain * stretch)]
    coarse = Image.fromarray(rng.normal(0, 1, shape).astype(np.float32))
    values = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (values - values.mean()) / values.std()


def _line(rng: np.random.Generator, width: int, length: float, turn: float) -> np.ndarray:
    """A line of steps that turns a little at each, as bool."""
    image = Image.new("1", (SIDE, SIDE))
    point, angle = rng.uniform(0.2, 0.8, 2) * SIDE, rng.uniform(0, 2 * np.pi)
    points = [tuple(point)]
    for _ in range(int(length / 6)):
        angle += rng.normal(0, turn)
        point = point + 6 * np.array([np.cos(angle), np.sin(angle)])
        points.append(tuple(point))
    ImageDraw.Draw(image).line(points, fill=1, width=width, joint="curve")
    return np.asarray(image)


def scratches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Straight and bright."""
    lines = [_line(rng, int(rng.integers(2, 5)), rng.uniform(60, 180), 0.02) for _ in range(rng.integers(1, 4))]
    return np.any(lines, axis=0), np.full((SIDE, SIDE), rng.uniform(30, 70))


def crack(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Winding and dark."""
    mask = _line(rng, int(rng.integers(2, 4)), rng.uniform(80, 220), 0.5)
    return mask, np.full((SIDE, SIDE), -rng.uniform(30, 70))


def pits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Small, round and dark."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(rng.integers(1, 5)):
        row, column = rng.uniform(0.1, 0.9, 2) * SIDE
        mask |= (rows - row) ** 2 + (columns - column) ** 2 < rng.uniform(4, 11) ** 2
    return mask, np.full((SIDE, SIDE), -rng.uniform(40, 80))


def stain(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large, irregular, darker."""
    mask = _blob(rng, rng.uniform(0.06, 0.25))
    return mask, np.full((SIDE, SIDE), -rng.uniform(15, 40))


def rough(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An irregular area of coarser grain, of the same brightness."""
    return _blob(rng, rng.uniform(0.06, 0.25)), rng.uniform(14, 26) * noise(rng, 3)


def _blob(rng: np.random.Generator, share: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    row, column = rng.uniform(0.25, 0.75, 2) * SIDE
    field = noise(rng, 25) - ((rows - row) ** 2 + (columns - column) ** 2) / (0.3 * SIDE) ** 2
    return field > np.quantile(field, 1 - share)


GOOD = "good"
DEFECTS = {"crack": crack, "pits": pits, "rough": rough, "scratches": scratches, "stain": stain}


def draw(rng: np.random.Generator, defect: str | None) -> tuple[Image.Image, Image.Image]:
    """An image and its mask; without a defect, an empty one."""
    stretch = rng.choice([1.0, 4.0, 12.0])
    surface = rng.uniform(90, 170) + rng.uniform(4, 12) * noise(rng, rng.uniform(1, 3), stretch)
    surface += rng.uniform(5, 20) * noise(rng, 60) + rng.normal(0, 3, (SIDE, SIDE))
    nothing = np.zeros((SIDE, SIDE), dtype=bool), np.zeros((SIDE, SIDE))
    mask, change = nothing if defect is None else DEFECTS[defect](rng)
    soft = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.GaussianBlur(0.8))) / 255
    pixels = np.clip(surface + soft * change, 0, 255).astype(np.uint8)
    turns = int(rng.integers(0, 4))
    return Image.fromarray(np.rot90(pixels, turns)), Image.fromarray(np.rot90(mask, turns).astype(np.uint8) * 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--good", action="store_true", help="two classes: defects of all kinds, and as many images without one"
    )
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    kinds = dict.fromkeys(DEFECTS, 1) | ({GOOD: len(DEFECTS)} if args.good else {})
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}
    for part, count in COUNTS.items():
        rows = []
        for kind, times in kinds.items():
            folder = args.output / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count * times // (2 if args.good else 1)):
                image, mask = draw(rng, None if kind == GOOD else kind)
                paths = [folder / f"{number:03}{end}.png" for end in ("", "_mask")]
                for picture, path in zip((image, mask), paths, strict=True):
                    picture.save(path)
                shares[kind].append(float(np.asarray(mask).mean() / 255))
                label = "defect" if args.good and kind != GOOD else kind
                rows.append([*(path.relative_to(args.output).as_posix() for path in paths), label])
        with (args.output / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    for kind, values in shares.items():
        print(f"{kind}: {100 * np.mean(values):.1f} % of the pixels")


if __name__ == "__main__":
    main()
