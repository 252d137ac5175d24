"""Reader of GlaS, glands in colon histology (Sirinukunwattana et al., Medical Image Analysis 2017), as distributed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minmax_entropy.data.downloads import Download
from minmax_entropy.data.files import ImageFiles, Record, read_csv, select_records
from minmax_entropy.data.images import read_values
from minmax_entropy.data.selection import SPLIT_SEED, draw_per_class
from minmax_entropy.data.sources import register_reader

_logger = logging.getLogger(__name__)

ARCHIVE = "warwick_qu_dataset_released_2016_07_08.zip"
FOLDER = "Warwick QU Dataset (Released 2016_07_08)"
DOWNLOAD = Download(
    "GlaS@MICCAI'2015: Gland Segmentation Challenge Contest",
    "https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/",
    (ARCHIVE,),
)
GRADES, NAME, GRADE = "Grade.csv", "name", "grade (glas)"
CLASSES = ("benign", "malignant")
# One in this many training images of each class is held out for validation, rounded up: 8 of 37 and 10 of 48.
VALID_FRACTION = 5


def _locate(root: Path) -> Path:
    """Return the folder with the images: `root`, or the archive's own folder in it."""
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _is_glas(root: Path) -> bool:
    folder = _locate(root)
    return any(folder.glob("train_*_anno.bmp")) or (folder / GRADES).is_file() or DOWNLOAD.lies_in(root)


@register_reader("glas", detect=_is_glas)
def open_glas(
    root: Path, split: str = "train", classes: Sequence[str] | None = None, seed: int = SPLIT_SEED
) -> ImageFiles:
    """Open GlaS: 165 images of benign and malignant glands, with masks of the glands.

    "test" is the official test set, parts A and B together (80); the official training set (85) is "train" (67) and
    "valid" (18), a fifth of each class, drawn by `draw_per_class`. Classes come from the column "grade (GlaS)" of
    `Grade.csv`. A pixel is foreground where the annotation, which labels glands by 1, 2, ..., is not 0.

    Args:
        root: folder with `Grade.csv`, `train_1.bmp`, `train_1_anno.bmp`, ..., or the folder that holds the
            archive's folder.
        split, classes: as in `open_split`.
        seed: seed of the draw of "valid".

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: `Grade.csv` does not have the format of the distributed file.
    """
    folder = _locate(root)
    grades = _read_grades(folder, root)
    names = sorted((name for name in grades if name.startswith("test") == (split == "test")), key=_natural)
    targets = [CLASSES.index(grades[name]) for name in names]
    if split != "test":
        drawn = draw_per_class(targets, lambda count: -(-count // VALID_FRACTION), seed)
        names = [name for name, held_out in zip(names, drawn, strict=True) if held_out == (split == "valid")]
    annotated = any(folder.glob("*_anno.bmp"))
    if not annotated:
        _logger.info("%s has no masks (*_anno.bmp, in %s)", folder, ARCHIVE)
    records = []
    for name in names:
        image = folder / f"{name}.bmp"
        records.append(Record(image, folder / f"{name}_anno.bmp" if annotated else None, grades[name]))
    records = select_records(records, classes, split, root)
    DOWNLOAD.require((record.image for record in records), ARCHIVE, root)
    return ImageFiles(records, classes or CLASSES, read_glas_mask)


def read_glas_mask(path: Path) -> np.ndarray:
    """Return an annotation as bool `[H, W]`: foreground where it is not 0."""
    DOWNLOAD.require([path], ARCHIVE, path.parent)
    return read_values(path) != 0


def _read_grades(folder: Path, root: Path) -> dict[str, str]:
    """Read the class by image name. The distributed file has spaces around column names and values."""
    path = folder / GRADES
    DOWNLOAD.require([path], ARCHIVE, root)
    rows = read_csv(path)
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    if NAME not in header or GRADE not in header:
        raise ValueError(f"{path} has columns {header}, expected {NAME!r} and {GRADE!r}")
    name_at, grade_at = header.index(NAME), header.index(GRADE)
    grades = {}
    for number, row in rows[1:]:
        name, grade = (row[at] if at < len(row) else "" for at in (name_at, grade_at))
        if not re.fullmatch(r"(train|testA|testB)_\d+", name) or grade.lower() not in CLASSES:
            raise ValueError(f"{path}, line {number}: expected train_N, testA_N or testB_N and {CLASSES}, got {row}")
        grades[name] = grade.lower()
    return grades


def _natural(name: str) -> tuple[str, int]:
    part, number = name.split("_")
    return part, int(number)
