"""Readers of CUB-200-2011, birds (Wah et al., Caltech technical report CNS-TR-2011-001), and its subset CUB5."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from minmax_entropy.data.dataset import Box
from minmax_entropy.data.downloads import Download
from minmax_entropy.data.files import ImageFiles, Record, select_records
from minmax_entropy.data.images import MASK_THRESHOLD, image_size, read_values
from minmax_entropy.data.selection import SPLIT_SEED, draw_per_class
from minmax_entropy.data.sources import register_reader

_logger = logging.getLogger(__name__)
Value = TypeVar("Value")

FOLDER = "CUB_200_2011"
ARCHIVE, MASK_ARCHIVE = "CUB_200_2011.tgz", "segmentations.tgz"
DOWNLOAD = Download(
    "Perona Lab - CUB-200-2011", "https://www.vision.caltech.edu/datasets/cub_200_2011/", (ARCHIVE, MASK_ARCHIVE)
)
IMAGES, SPLIT, LABELS, CLASSES, BOXES = (
    "images.txt",
    "train_test_split.txt",
    "image_class_labels.txt",
    "classes.txt",
    "bounding_boxes.txt",
)
FIRST_CLASS = "001.Black_footed_Albatross"
# Number of training images of each class that are held out for validation.
VALID_PER_CLASS = 6
# In alphabetical order.
CUB5_CLASSES = ("Gray_Catbird", "Myrtle_Warbler", "Ovenbird", "Swainson_Warbler", "White_necked_Raven")


def _locate(root: Path) -> Path:
    """Return the folder with the lists: `root`, or the archive's own folder in it."""
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _is_cub(root: Path) -> bool:
    """Return whether any of the data set is there: half an archive or images alone must not pass for class folders."""
    folder = _locate(root)
    lists = any((folder / name).is_file() for name in (SPLIT, LABELS))
    images = any((folder / place / FIRST_CLASS).is_dir() for place in ("", "images"))
    return lists or images or (root / ARCHIVE).is_file()


class CubImages(ImageFiles):
    """Image files whose boxes are clipped to the image."""

    def boxes(self, index: int) -> list[Box] | None:
        boxes = super().boxes(index)
        if boxes is None:
            return None
        width, height = image_size(self.records[index].image)
        return [(max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)) for x0, y0, x1, y1 in boxes]


@register_reader("cub", detect=_is_cub)
def open_cub(
    root: Path, split: str = "train", classes: Sequence[str] | None = None, seed: int = SPLIT_SEED
) -> CubImages:
    """Open CUB-200-2011: 11,788 photographs of 200 species of birds, with a box each and masks from another archive.

    "test" is the official test set (5794); the official training set (5994) is "train" (4794) and "valid" (1200), six
    images of each class, drawn by `draw_per_class`. Class names come from `classes.txt`, without their numbers and in
    its order. A pixel is foreground where the segmentation's value is over 127. Boxes come from `bounding_boxes.txt`,
    clipped to the image; this list may be missing.

    Args:
        root: folder with `images.txt` etc. and `images/`, or the parent of `CUB_200_2011/`; `segmentations/` may lie
            in either.
        split, classes: as in `open_split`.
        seed: seed of the draw of "valid".

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: a list is malformed, or does not fit the others.
    """
    folder = _locate(root)
    if not (folder / IMAGES).is_file() and (root.parent / IMAGES).is_file():
        raise FileNotFoundError(f"{root} is a part of CUB-200-2011: give the folder above, {root.parent}")
    lists = _read_lists(folder)
    ids = [number for number in lists.images if lists.in_train[number] != (split == "test")]
    if split != "test":
        drawn = draw_per_class([lists.labels[number] for number in ids], _valid_count, seed)
        ids = [number for number, held_out in zip(ids, drawn, strict=True) if held_out == (split == "valid")]
    masks = _masks_folder(folder, root)
    records = []
    for number in ids:
        path = lists.images[number]
        mask = None if masks is None else masks / Path(path).with_suffix(".png")
        boxes = None if lists.boxes is None else (lists.boxes[number],)
        records.append(Record(folder / "images" / path, mask, lists.classes[lists.labels[number]], boxes))
    records = select_records(records, classes, split, root)
    DOWNLOAD.require((record.image for record in records), ARCHIVE, _extracted_in(folder))
    return CubImages(records, classes or list(lists.classes.values()), read_cub_mask)


@register_reader("cub5")
def open_cub5(
    root: Path, split: str = "train", classes: Sequence[str] | None = None, seed: int = SPLIT_SEED
) -> CubImages:
    """Open CUB5: Gray Catbird, Myrtle Warbler, Ovenbird, Swainson Warbler and White-necked Raven of CUB-200-2011.

    120, 30 and 145 images, in the same parts as in `open_cub` with the same seed. Arguments and errors are the same as
    for `open_cub`.
    """
    return open_cub(root, split, CUB5_CLASSES if classes is None else classes, seed)


def read_cub_mask(path: Path) -> np.ndarray:
    """Return a segmentation as bool `[H, W]`: foreground where its value, the share of annotators times 255, is over
    127."""
    DOWNLOAD.require([path], MASK_ARCHIVE, path.parents[2])  # segmentations/<class>/<name>.png
    return read_values(path) > MASK_THRESHOLD


def _extracted_in(folder: Path) -> Path:
    """Return the folder to extract the archive in; the archive has a folder `CUB_200_2011` of its own."""
    return folder.parent if folder.name == FOLDER else folder


class _Lists(NamedTuple):
    """The lists of the archive, by image number, and the class names by class number."""

    images: dict[int, str]
    labels: dict[int, int]
    in_train: dict[int, bool]
    boxes: dict[int, Box] | None
    classes: dict[int, str]


def _read_lists(folder: Path) -> _Lists:
    lists = _Lists(
        images=_read(folder, IMAGES, lambda cells: cells[0]),
        labels=_read(folder, LABELS, lambda cells: int(cells[0])),
        in_train=_read(folder, SPLIT, lambda cells: cells[0] == "1"),
        boxes=_read(folder, BOXES, _box) if (folder / BOXES).is_file() else None,
        classes=_read(folder, CLASSES, lambda cells: cells[0].partition(".")[2] or cells[0]),
    )
    count = len(lists.images)
    for name, values in ((LABELS, lists.labels), (SPLIT, lists.in_train), (BOXES, lists.boxes)):
        if values is not None and values.keys() != lists.images.keys():
            raise ValueError(f"{folder / name} lists {len(values)} images, {IMAGES} lists {count}, not the same")
    if not lists.classes.keys() >= set(lists.labels.values()):
        raise ValueError(f"{folder / LABELS} has classes that {CLASSES} does not name")
    return lists


def _read(folder: Path, name: str, parse: Callable[[list[str]], Value]) -> dict[int, Value]:
    """Read the lines `<id> <value>...` of a list, as values by id."""
    path = folder / name
    DOWNLOAD.require([path], ARCHIVE, _extracted_in(folder))
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        try:
            values[int(cells[0])] = parse(cells[1:])
        except (ValueError, IndexError):
            raise ValueError(f"{path}, line {number} is damaged: {line!r}") from None
    return values


def _box(cells: list[str]) -> Box:
    x, y, width, height = map(float, cells)
    return x, y, x + width, y + height


def _valid_count(images: int) -> int:
    if images <= VALID_PER_CLASS:
        raise ValueError(
            f"{SPLIT}: a class has {images} training images, of which {VALID_PER_CLASS} are held out for validation"
        )
    return VALID_PER_CLASS


def _masks_folder(folder: Path, root: Path) -> Path | None:
    places = [place / "segmentations" for place in (folder, root, folder.parent)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        _logger.info("%s has no masks: %s of %r, %s, has them", root, MASK_ARCHIVE, DOWNLOAD.title, DOWNLOAD.url)
    return found
