"""Image files with class names, and masks and boxes where they exist."""

from __future__ import annotations

import copy
import csv
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from minmax_entropy.data.dataset import Box, LabelledImages
from minmax_entropy.data.images import read_image, read_mask
from minmax_entropy.data.selection import HELD_OUT, check_classes, shuffled_classes

_logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """One image of a data set."""

    image: Path
    mask: Path | None
    class_name: str
    boxes: tuple[Box, ...] | None = None  # (x0, y0, x1, y1) in pixels of the upright image


class ImageFiles(LabelledImages):
    """Image files with class names and optional mask files and boxes.

    Args:
        records: the files.
        class_names: names in the order of the class indices; sorted by default.
        mask_reader: function from a mask file's path to bool `[H, W]`.

    Raises:
        ValueError: no records, a class that is not in `class_names`, or a name that appears twice in it.
    """

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str] | None = None,
        mask_reader: Callable[[Path], np.ndarray] = read_mask,
    ) -> None:
        if not records:
            raise ValueError("no images")
        self.records = list(records)
        self.mask_reader = mask_reader
        self._set_classes(sorted({record.class_name for record in records}) if class_names is None else class_names)

    def _set_classes(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self._index = {name: index for index, name in enumerate(self.class_names)}
        if len(self._index) != len(self.class_names):
            raise ValueError(f"a class is named twice in {self.class_names}")
        unknown = next((record for record in self.records if record.class_name not in self._index), None)
        if unknown is not None:
            text = f"class {unknown.class_name!r} of {unknown.image} is none of the known classes {self.class_names}"
            raise ValueError(text)

    def with_classes(self, class_names: Sequence[str]) -> ImageFiles:
        other = copy.copy(self)
        other._set_classes(class_names)
        return other

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> Image.Image:
        return read_image(self.records[index].image)

    def target(self, index: int) -> int:
        return self._index[self.records[index].class_name]

    def mask(self, index: int) -> np.ndarray | None:
        path = self.records[index].mask
        return None if path is None else self.mask_reader(path)

    @property
    def has_masks(self) -> bool:
        return any(record.mask is not None for record in self.records)

    def boxes(self, index: int) -> list[Box] | None:
        boxes = self.records[index].boxes
        return None if boxes is None else list(boxes)

    def name(self, index: int) -> str:
        return str(self.records[index].image)


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Return the line number, from 1, and the stripped cells of each non-empty row of a CSV file.

    Raises:
        ValueError: text that is not CSV in UTF-8 (with or without a byte order mark).
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read as CSV in UTF-8: {error}") from error
    return [(number, cells) for number, cells in rows if any(cells)]


def select_records(records: list[Record], classes: Sequence[str] | None, split: str, place: object) -> list[Record]:
    """Return the records of `classes`, all if None; raises and logs like `check_classes`."""
    if classes is None:
        return records
    check_classes({record.class_name for record in records}, classes, split, place)
    wanted = set(classes)
    return [record for record in records if record.class_name in wanted]


def hold_out(records: list[Record], split: str, held: Collection[str], seed: int, place: object) -> list[Record]:
    """Split images that come without some parts, and return the records of one part.

    Every class is drawn like class 0 in `shuffled_classes`, whatever its index, so that its draw does not depend on the
    other classes.

    Args:
        records: all records to split.
        split: "train", or one of `held`.
        held: "valid", "test" or both: 15 % and 25 % of each class. The rest is "train".
        seed: 0 or more.
        place: the data set, for messages.

    Raises:
        ValueError: the classes have too few images for `split`.
    """
    if "test" not in held:
        _logger.info("%s has no validation part: %d %% of train are held out", place, 100 * HELD_OUT["valid"])
    classes: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        classes.setdefault(record.class_name, []).append(index)
    chosen: list[int] = []
    for members in classes.values():
        (order,) = shuffled_classes([0] * len(members), seed)
        valid, test = (round(HELD_OUT[part] * len(members)) if part in held else 0 for part in ("valid", "test"))
        part = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}[split]
        chosen += [members[position] for position in part]
    if not chosen:
        raise ValueError(f"{place} has too few images a class to hold out a {split!r} part: give it one of its own")
    return [records[index] for index in sorted(chosen)]
