"""How close prediction by tiles comes to prediction of the whole image, by tile and overlap.

    python benchmarks/tiles.py --plugin examples/squeezenet_backbone.py --model runs/area/model --data pascal20

Images of the `test` part, large enough in the network's eyes for several tiles and small enough to be taken whole.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import numpy as np

import minmax_entropy as mme
from minmax_entropy.data import open_split
from minmax_entropy.engine import Inference, predict_images, preprocess_for

# Shorter side of the image as the network sees it, tile, overlap; pixels.
ROWS = [(448, 224, 64), (448, 224, 112), (896, 448, 64), (896, 448, 128), (896, 448, 192)]
STEP = 17  # every so many images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a saved model")
    parser.add_argument("--data", type=Path, required=True, help="folder of its data")
    parser.add_argument("--plugin", help="Python file to run first")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)), help="which of the rows")
    args = parser.parse_args()
    if args.plugin:
        runpy.run_path(args.plugin)
    model = mme.create_model(f"local-dir:{args.model}")
    dataset = open_split(args.data, "test", model.class_names)
    images = [(index, dataset.image(index)) for index in range(0, STEP * args.images, STEP)]
    print("| shorter side | tile | overlap | IoU of the masks | lowest | mean difference of M+ | same class |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for side, tile, overlap in (ROWS[index] for index in args.rows):
        preprocess = preprocess_for(model, side)
        ious, differences, same = [], [], 0
        whole = predict_images(model, images, preprocess)
        tiled = predict_images(model, images, preprocess, inference=Inference(tile, overlap))
        for one, other in zip(whole, tiled, strict=True):
            marked = one.mask >= model.mask_threshold, other.mask >= model.mask_threshold
            ious.append((marked[0] & marked[1]).sum() / max((marked[0] | marked[1]).sum(), 1))
            differences.append(np.abs(one.mask - other.mask).mean())
            same += one.class_index == other.class_index
        figures = f"{np.mean(ious):.3f} | {min(ious):.3f} | {np.mean(differences):.5f} | {same} of {len(images)}"
        print(f"| {side} | {tile} | {overlap} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
