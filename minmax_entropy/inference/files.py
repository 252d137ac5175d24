"""Prediction on image files: class, mask, boxes; an overlay and a mask as PNG."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from minmax_entropy.data import DamagedFileError, Preprocess, read_image
from minmax_entropy.data.folder import image_files
from minmax_entropy.data.limits import allow_pixels
from minmax_entropy.inference.options import Inference, check_inference
from minmax_entropy.inference.prediction import SUFFIXES
from minmax_entropy.inference.predictor import predict_images
from minmax_entropy.model import MinMaxEntropy


def expand_paths(paths: Sequence[str | Path], output: str | Path | None = None) -> list[Path]:
    """Files as they are, folders as the image files in them (hidden ones left out).

    Args:
        paths: files and folders.
        output: where predictions are written: where it lies within one of the folders, the overlays and masks of an
            earlier run are no images.
    """
    own = None if output is None else Path(output).resolve()
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = image_files(path)
            files += [
                file
                for file in found
                if not (file.name.endswith(tuple(SUFFIXES.values())) and file.parent.resolve() == own)
            ]
        else:
            files.append(path)
    return files


def predict_files(
    model: MinMaxEntropy,
    paths: Sequence[str | Path],
    output: str | Path | None = None,
    preprocess: Preprocess | None = None,
    *,
    inference: Inference | None = None,
    threshold: float | None = None,
    max_pixels: int | None = None,
) -> Iterator[dict]:
    """Predict image files one by one.

    Args:
        model: the model; its `class_names` name the classes where it has them.
        paths: image files.
        output: folder for `<name>_overlay.png` (at most 8192 pixels on its longer side) and `<name>_mask.png` (0 and
            255, at the image's own size).
        preprocess: by default `preprocess_for(model)`.
        inference: tiles, averaging and refinement; by default each whole image as the model does it.
        threshold: a pixel is marked where the mask is at least this; by default the model's `mask_threshold`.
        max_pixels: see `allow_pixels`.

    Yields:
        A dictionary per file: `image`, `class` (None where the probability is under the model's `min_probability`),
        `probability` (of the most probable class), `boxes` (`[x0, y0, x1, y1]` of the connected regions, the largest
        first), `share` (of the image in the mask), and `overlay` and `mask` with their paths. Without a class, and for
        one of the model's `empty_classes`, the mask is empty. A file that can't be read has `image` and `error` only.

    Raises:
        FileExistsError: an output would overwrite one of the images.
        ValueError: the model does not work as `inference` asks.
    """
    inference = inference or Inference()
    check_inference(model, inference)
    inputs = {Path(path).resolve() for path in paths}
    stems = _unique_stems([Path(path) for path in paths])
    for path, stem in zip(paths, stems, strict=True):
        try:
            with allow_pixels(max_pixels):
                image = read_image(path)
        except (DamagedFileError, OSError) as error:
            yield {"image": str(path), "error": str(error)}
            continue
        prediction = next(predict_images(model, iter([(0, image)]), preprocess, inference=inference))
        shown = dict(image=image, source=Path(path))
        if threshold is not None:
            shown["threshold"] = threshold
        prediction = dataclasses.replace(prediction, **shown)
        result = prediction.to_dict()
        if output is not None:
            for suffix in SUFFIXES.values():
                if (Path(output) / f"{stem}{suffix}").resolve() in inputs:
                    written = Path(output) / f"{stem}{suffix}"
                    raise FileExistsError(f"{written} is one of the images: choose another output folder")
            result |= {kind: str(written) for kind, written in prediction.save(output, stem).items()}
        yield result


def _unique_stems(paths: list[Path]) -> list[str]:
    """File stems, made unique with the folder's name, and a number where that is not enough."""
    stems: dict[str, None] = {}
    for path in paths:
        numbered = (f"{path.stem}_{number}" for number in itertools.count(1))
        candidates = itertools.chain((path.stem, f"{path.parent.name}_{path.stem}"), numbered)
        stems[next(stem for stem in candidates if stem not in stems)] = None
    return list(stems)
