"""Peak memory and time of `predict` and `evaluate` on large images, each in a fresh process.

    python benchmarks/large_images.py --output docs/results/large_images.md

The images are made first: textured objects on clutter, as JPEG with a mask. The model is a small
ConvNeXt with fresh weights: what tiles cost does not depend on them. The network sees each image at its own size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import minmax_entropy as mme
from minmax_entropy.data import SyntheticShapes

CLASSES = 6
PATCH = 500  # pixels that a bundled image of 64 x 64 is enlarged to
# Runs a command line, then says what it took: peak resident memory in KiB, and seconds.
PROBE = """
import re, sys, time
from minmax_entropy.cli import main
started = time.perf_counter()
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)
print("measured", peak, time.perf_counter() - started)
sys.exit(status)
"""


def make_data(folder: Path, side: int) -> Path:
    """A data set of one image with a mask, in `test.csv`; its path is returned."""
    shapes = SyntheticShapes(40, 64, CLASSES, seed=0)
    image, mask = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    for number, (top, left) in enumerate(np.ndindex(-(-side // PATCH), -(-side // PATCH))):
        place, index = (left * PATCH, top * PATCH), number % len(shapes)
        image.paste(shapes.image(index).resize((PATCH, PATCH)), place)
        mask.paste(Image.fromarray(shapes.mask(index)).resize((PATCH, PATCH)), place)
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{side}.jpg", quality=90)
    mask.save(folder / f"{side}.png")
    (folder / "test.csv").write_text(f"{side}.jpg,{side}.png,{shapes.class_names[0]}\n")
    return folder / f"{side}.jpg"


def measure(*arguments: object) -> tuple[float, float]:
    """Peak memory in GiB and seconds of a command."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} failed: {done.stderr[-2000:]}")
    peak, seconds = done.stdout.splitlines()[-1].split()[1:]
    return int(peak) / 2**20, float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=[2000, 5000, 20000], help="of the images, pixels")
    parser.add_argument("--model", default="wsl_test_convnext", help="%(default)s")
    parser.add_argument("--commands", nargs="*", default=["predict", "evaluate"], choices=["predict", "evaluate"])
    parser.add_argument("--options", nargs="*", default=[], help="for both commands, without dashes: tile=512")
    parser.add_argument("--output", type=Path, help="Markdown table; printed in any case")
    args = parser.parse_args()
    lines = ["| command | image | peak memory, GiB | seconds |", "| --- | ---: | ---: | ---: |"]
    print("\n".join(lines), flush=True)
    options = [part for option in args.options for part in (f"--{option.split('=')[0]}", option.split("=")[1])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = mme.create_model(args.model, num_classes=CLASSES, preset="area", localizer="average")
        model.save_pretrained(folder / "model", class_names=SyntheticShapes(1, 64, CLASSES).class_names)
        for side in args.sides:
            image = make_data(folder / str(side), side)
            common = ("--model", folder / "model", "--size", side, "--max-pixels", side * side, "--device", "cpu")
            inputs = {"predict": (image, "--output", folder / "out"), "evaluate": ("--data", image.parent)}
            for command in args.commands:
                memory, seconds = measure(command, *inputs[command], *common, *options)
                lines.append(f"| {command} | {side} x {side} | {memory:.2f} | {seconds:.0f} |")
                print(lines[-1], flush=True)
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
