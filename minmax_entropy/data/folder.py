"""Images on disk: class folders with optional masks, and lists in CSV."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from minmax_entropy.data.dataset import LabelledImages
from minmax_entropy.data.images import IMAGE_SUFFIXES, read_image, read_mask

_logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
SPLIT_SEED = 0
# First cells that make the first row of a list a header.
HEADERS = ("image", "images", "image_path", "img", "img_path", "path", "file", "filename", "file_name")
HELD_OUT = {"valid": 0.15, "test": 0.25}


class Record(NamedTuple):
    """A line of a data set."""

    image: Path
    mask: Path | None
    class_name: str


class ImageFiles(LabelledImages):
    """Image files with class names and optional mask files.

    Args:
        records: the files.
        class_names: names in the order of the class indices; sorted by default.

    Raises:
        ValueError: no records, a class that is not in `class_names`, or a name that is twice in it.
    """

    def __init__(self, records: Sequence[Record], class_names: Sequence[str] | None = None) -> None:
        if not records:
            raise ValueError("no images")
        self.records = list(records)
        found = sorted({record.class_name for record in self.records})
        self.class_names = list(class_names) if class_names is not None else found
        self._index = {name: index for index, name in enumerate(self.class_names)}
        if len(self._index) != len(self.class_names):
            raise ValueError(f"a class is named twice in {self.class_names}")
        unknown = [name for name in found if name not in self._index]
        if unknown:
            example = next(record.image for record in self.records if record.class_name == unknown[0])
            raise ValueError(f"class {unknown[0]!r} of {example} is none of the known classes {self.class_names}")

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> Image.Image:
        return read_image(self.records[index].image)

    def target(self, index: int) -> int:
        return self._index[self.records[index].class_name]

    def mask(self, index: int) -> np.ndarray | None:
        path = self.records[index].mask
        return None if path is None else read_mask(path)

    def name(self, index: int) -> str:
        return str(self.records[index].image)


def open_split(root: str | Path, split: str = "train", classes: Sequence[str] | None = None) -> ImageFiles:
    """One part of a data set on disk.

    Three layouts are known, looked for in this order:

    1. `root/train.csv`, `valid.csv`, `test.csv`: rows `image,mask,class`, paths relative to `root`, the mask may be
       empty; a header row is skipped.
    2. `root/[images/]train/<class>/*`, `valid/...` (or `val`, `validation`), `test/...`.
    3. `root/[images/]<class>/*` without splits: 15 % of each class are held out for "valid" and 25 % for "test", by a
       fixed seed.

    In the last two, the mask of `images/a/b.jpg` is `masks/a/b.png` (any image suffix), where it exists.

    Args:
        root: folder of the data set.
        split: "train", "valid" or "test".
        classes: take only these, and index them in this order. All of them must have images in "train", one in the
            other parts.

    Raises:
        FileNotFoundError: no such folder, list, or image.
        ValueError: an empty folder, a class without images, or a malformed list; the message names it.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    lists = [root / f"{name}.csv" for name in SPLIT_NAMES[split] if (root / f"{name}.csv").is_file()]
    if lists:
        records = read_list(lists[0], root)
    elif any((root / f"{other}.csv").is_file() for other in SPLITS):
        raise FileNotFoundError(f"{root} has lists, but no {split}.csv")
    else:
        records = _read_folders(root, split)
    if classes is not None:
        known = {record.class_name for record in records}
        missing = [name for name in classes if name not in known]
        if missing and (split == "train" or len(missing) == len(classes)):
            raise ValueError(f"{root} has no images of class {missing[0]!r} for {split}; its classes: {sorted(known)}")
        for names, text in ((missing, "no images of"), (sorted(known - set(classes)), "leaving out")):
            if names:
                _logger.info("%s, %s: %s %s", root, split, text, ", ".join(names))
        records = [record for record in records if record.class_name in set(classes)]
    return ImageFiles(records, classes)


def read_list(path: str | Path, root: str | Path) -> list[Record]:
    """Rows `image,mask,class` of a CSV list, paths relative to `root`; every file named must exist.

    Raises:
        ValueError: a row that has not three cells, no rows, or text that is not UTF-8.
        FileNotFoundError: an image or mask that does not exist, with its line.
    """
    path, root = Path(path), Path(root)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read as CSV in UTF-8: {error}") from error
    records = []
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 3 or not cells[0] or not cells[2]:
            raise ValueError(f"{path}, line {number}: a row is image,mask,class (the mask may be empty), got {row}")
        image, mask, class_name = root / cells[0], (root / cells[1] if cells[1] else None), cells[2]
        if not image.is_file():
            if number == 1 and cells[0].lower() in HEADERS:
                continue
            raise FileNotFoundError(f"{path}, line {number}: no image {image}")
        if mask is not None and not mask.is_file():
            raise FileNotFoundError(f"{path}, line {number}: no mask {mask}")
        records.append(Record(image, mask, class_name))
    if not records:
        raise ValueError(f"{path} lists no images")
    return records


def _read_folders(root: Path, split: str) -> list[Record]:
    images = root / "images" if (root / "images").is_dir() else root
    has_splits = any(_is_split(images / name) for names in SPLIT_NAMES.values() for name in names)
    folders = [images / name for name in SPLIT_NAMES[split] if _is_split(images / name)] if has_splits else [images]
    if not folders:
        raise FileNotFoundError(f"{images} has folders for some of {SPLITS}, but none for {split!r}")
    folder = folders[0]
    classes = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and entry.name != "masks" and entry.name[0] != "."
    )
    if not classes:
        raise ValueError(f"{folder} has no class folders: expected {folder}/<class>/<image>")
    records = []
    for entry in classes:
        files = image_files(entry)
        if not files:
            raise ValueError(f"class folder {entry} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        files = files if has_splits else _held_out(files, split)
        records += [Record(file, _mask_of(root / "masks" / file.relative_to(images)), entry.name) for file in files]
    if not records:
        raise ValueError(f"{folder} has too few images a class to hold out a {split!r} part; give it split folders")
    return records


def _is_split(folder: Path) -> bool:
    """Whether a folder holds class folders, and not images: a class may be called "train", too."""
    return folder.is_dir() and any(entry.is_dir() and entry.name[0] != "." for entry in folder.iterdir())


def image_files(folder: Path) -> list[Path]:
    """Image files in a folder and those in it, sorted; what is hidden (`._a.jpg`, `.ipynb_checkpoints`) is left out."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _held_out(files: list[Path], split: str) -> list[Path]:
    """The part of a class's files that belongs to a split, drawn by a fixed seed."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(files))
    valid = round(HELD_OUT["valid"] * len(files))
    test = round(HELD_OUT["test"] * len(files))
    part = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}[split]
    return [files[index] for index in sorted(part)]


def _mask_of(path: Path) -> Path | None:
    suffixes = (".png", *IMAGE_SUFFIXES)
    candidates = (path.with_suffix(suffix) for suffix in (*suffixes, *map(str.upper, suffixes)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
