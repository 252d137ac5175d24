"""Cut the images of a data set so that a border runs through each object: where do masks lie that may not lie there?

The border penalty (`border_weight`) is paid by objects at the border as well. With the images of `steel3`, 42 % of
the objects' pixels then lie within 8 % of the border, where the same share of a mask of the whole image is 29 %:

    python benchmarks/quality/border.py steel3 runs/steel3-border
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from minmax_entropy.metrics import border_share

SHARE = 0.7  # of height and width that is left
LEAST = 0.15  # of the object that must be left
SMALLEST = 0.005  # share of what is left that the object must have
TRIES = 30


def cut(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """A box `(left, top, right, bottom)` with a side that runs through the object, at its second to eighth tenth;
    None where the object is too far from every border, or too small once it is cut."""
    if not mask.any():
        return None
    height, width = mask.shape
    box = round(SHARE * width), round(SHARE * height)
    places = np.nonzero(mask)[::-1]  # columns, rows
    for _ in range(TRIES):
        start = [int(rng.integers(0, length - side + 1)) for length, side in zip((width, height), box, strict=True)]
        axis, before = int(rng.integers(2)), bool(rng.integers(2))
        side = int(np.quantile(places[axis], rng.uniform(0.2, 0.6) if before else rng.uniform(0.4, 0.8)))
        start[axis] = side if before else side - box[axis]
        if not 0 <= start[axis] <= (width, height)[axis] - box[axis]:
            continue
        left, top = start
        inside = mask[top : top + box[1], left : left + box[0]]
        if inside.sum() >= LEAST * mask.sum() and inside.mean() >= SMALLEST:
            return left, top, left + box[0], top + box[1]
    return None


def write(source: Path, target: Path, split: str, rng: np.random.Generator) -> list[float]:
    """One list of images with masks; the share of each object's pixels along the border."""
    with (source / f"{split}.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    lines, shares = [], []
    for number, (image_path, mask_path, name) in enumerate(rows):
        image, mask = Image.open(source / image_path), Image.open(source / mask_path)
        box = cut(np.asarray(mask) > 0, rng)
        if box is None:
            continue
        row = [f"{folder}/{split}_{number:04d}.png" for folder in ("images", "masks")]
        image = image.crop(box).resize(image.size, Image.Resampling.BICUBIC)
        mask = mask.crop(box).resize(image.size, Image.Resampling.NEAREST)
        for picture, path in zip((image, mask), row, strict=True):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(target / path)
        lines.append([*row, name])
        shares.append(border_share(np.asarray(mask) > 0))
    with (target / f"{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with train.csv, valid.csv, test.csv: image,mask,class")
    parser.add_argument("target", type=Path, help="folder that gets the same of the cut images")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        shares = write(options.source, options.target, split, rng)
        print(f"{split}: {len(shares)} images, {100 * np.mean(shares):.0f} % of the object along the border")


if __name__ == "__main__":
    main()
