"""Columns of Hugging Face `datasets`: labels to class indices, cells to images, masks and boxes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minmax_entropy.data.dataset import Box
from minmax_entropy.data.images import BoxError, DamagedFileError, decode_image, decode_mask

BOX_FORMATS = ("xyxy", "xywh")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns; None where there is none.

    Args:
        image, mask: images, encoded images (bytes), or paths.
        label: class names or indices.
        boxes: a list of boxes per image.
        box_format: "xyxy" for `(x0, y0, x1, y1)`, "xywh" for `(x, y, width, height)` as in COCO.
    """

    image: str = "image"
    label: str = "label"
    mask: str | None = None
    boxes: str | None = None
    box_format: str = "xyxy"

    def __post_init__(self) -> None:
        if self.box_format not in BOX_FORMATS:
            raise ValueError(f"box_format is one of {BOX_FORMATS}, got {self.box_format!r}")

    @classmethod
    def of(cls, names: Mapping[str, str | None] | None, box_format: str) -> Columns:
        """Create from the option `columns`, which names some of image, label, mask and boxes."""
        known = ("image", "label", "mask", "boxes")
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise ValueError(f"columns are given for {known}, got {unknown[0]!r}")
        return cls(**(names or {}), box_format=box_format)

    @property
    def names(self) -> list[str]:
        return [name for name in (self.image, self.label, self.mask, self.boxes) if name is not None]

    def check(self, found: Sequence[str] | None, place: str) -> None:
        """Raise `ValueError` for a column that is not among `found` (None: not known before reading)."""
        for name in self.names:
            if found is not None and name not in found:
                raise ValueError(f"{place} has no column {name!r}; its columns: {list(found)}. Use columns=dict(...)")


def undecoded(dataset: Any, columns: Columns) -> Any:
    """Return the data set with its image columns left encoded: images are decoded on access only, by this library, like
    files."""
    import datasets

    for name in (columns.image, columns.mask):
        feature = (dataset.features or {}).get(name)
        if isinstance(feature, datasets.Image) and feature.decode:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def label_names(dataset: Any, column: str) -> list[str] | None:
    """Return the names of a column of `ClassLabel`s; None if it has none."""
    import datasets

    feature = (dataset.features or {}).get(column)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def class_name(value: Any, names: Sequence[str] | None, place: str) -> str:
    """Return the class of a label cell: an index into `names` if they exist, else the text or whole number itself.

    Raises:
        ValueError: a missing label, an index without a name, or a label of another kind, with its row.
    """
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise ValueError(f"{place}: the label is {value}, there are {len(names)} classes")
        return names[value]
    if isinstance(value, (str, int)):
        return str(value)
    raise ValueError(f"{place}: a label is a text or a whole number, one an image; got {value!r}")


def sort_key(value: str | int) -> tuple[int, str | int]:
    """Return the sort key of a label without a name: numbers by value, before texts."""
    return (1, value) if isinstance(value, str) else (0, value)


def cell_image(value: Any, place: str) -> Image.Image:
    """Return an image cell as RGB, upright. Raises `DamagedFileError`, naming the row, if it can't be read."""
    return decode_image(_content(value, place), place)


def cell_mask(value: Any, place: str) -> np.ndarray | None:
    """Return a mask cell as bool `[H, W]`, None if it is empty. Raises like `cell_image`."""
    return None if value is None else decode_mask(_content(value, place), place)


def cell_boxes(value: Any, box_format: str, place: str) -> list[Box] | None:
    """Return a cell of boxes as `(x0, y0, x1, y1)`, None if it is empty. Raises `BoxError`, naming the row."""
    if value is None:
        return None
    try:
        boxes = [tuple(map(float, box)) for box in value]
        correct = all(len(box) == 4 and all(map(math.isfinite, box)) for box in boxes)
    except (TypeError, ValueError):
        correct = False
    if not correct:
        raise BoxError(place, f"{value!r}, expected a list of four numbers a box")
    return [(x, y, x + a, y + b) if box_format == "xywh" else (x, y, a, b) for x, y, a, b in boxes]


def _content(value: Any, place: str) -> bytes | Image.Image:
    """Return the content of a cell, which is an encoded `Image` (`{"bytes": ..., "path": ...}`), bytes, a path or an
    image."""
    if isinstance(value, (bytes, Image.Image)):
        return value
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    if data is not None:
        return data
    if not isinstance(path, (str, Path)):
        raise DamagedFileError(place, f"expected an image, its bytes or a path, got {type(value).__name__}")
    import fsspec

    try:
        with fsspec.open(str(path), "rb") as file:  # "zip://a.jpg::hf://datasets/..." too, where it is streamed
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: no file {path}") from None
