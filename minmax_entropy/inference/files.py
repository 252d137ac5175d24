"""Predictions of image files: class, mask, boxes; an overlay and a mask as PNG."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minmax_entropy.data import DamagedFileError
from minmax_entropy.data.folder import image_files
from minmax_entropy.inference.prediction import SUFFIXES
from minmax_entropy.inference.predictor import Predictor


def expand_paths(paths: Sequence[str | Path], output: str | Path | None = None) -> list[Path]:
    """Replace folders by the image files in them, without hidden ones.

    Args:
        paths: files and folders.
        output: folder of the predictions; overlays and masks of an earlier run in it are left out.
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
    predictor: Predictor, paths: Sequence[str | Path], output: str | Path | None = None
) -> Iterator[dict[str, Any]]:
    """Predict image files one by one; a file that can't be read does not stop the others.

    Args:
        predictor: the predictor.
        paths: image files.
        output: folder for `<name>_overlay.png` (at most 8192 pixels on its longer side) and `<name>_mask.png` (0 and
            255, at the image's own size).

    Yields:
        A dictionary per file: that of `Prediction.to_dict`, and `overlay` and `mask` with their paths. A file that
        can't be read has `image` and `error` only.

    Raises:
        FileExistsError: an output would overwrite one of the images.
    """
    inputs = {Path(path).resolve() for path in paths}
    stems = _unique_stems([Path(path) for path in paths])
    for path, stem in zip(paths, stems, strict=True):
        try:
            prediction = predictor(Path(path))
        except (DamagedFileError, OSError) as error:
            yield {"image": str(path), "error": str(error)}
            continue
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
