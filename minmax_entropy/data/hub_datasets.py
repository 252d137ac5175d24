"""Data sets of Hugging Face `datasets`: by name, local, or already loaded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minmax_entropy._extras import require
from minmax_entropy.data.dataset import Box, LabelledImages
from minmax_entropy.data.hub_columns import (
    Columns,
    cell_boxes,
    cell_image,
    cell_mask,
    class_name,
    label_names,
    sort_key,
    undecoded,
)
from minmax_entropy.data.hub_stream import HubStream
from minmax_entropy.data.selection import HELD_OUT, SPLIT_SEED, SPLITS, check_classes, draw_per_class
from minmax_entropy.data.sources import register_reader

_logger = logging.getLogger(__name__)

PART_NAMES = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
FILES = {".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("dataset_dict.json", "state.json")  # written by `save_to_disk`


@register_reader("hf", reads_folder=False)
def open_hub(
    source: Any,
    split: str = "train",
    classes: Sequence[str] | None = None,
    columns: Mapping[str, str | None] | None = None,
    box_format: str = "xyxy",
    config: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
    streaming: bool = False,
    split_names: Mapping[str, str] | None = None,
    seed: int = SPLIT_SEED,
) -> HubImages | HubStream:
    """Open a data set of the Hugging Face Hub, of a local folder or file, or one that `datasets` has already loaded.

    Labels of the type `ClassLabel` keep their names; texts become classes in alphabetical order, whole numbers in
    numerical order, `"0"`, `"1"`, ... Images and masks are decoded on access, masks for evaluation only.

    Args:
        source: a name as `datasets.load_dataset` takes it, a folder (of images, Parquet files, or of `save_to_disk`), a
            Parquet or Arrow file, or an object: a `DatasetDict` or `IterableDatasetDict` has parts; a `Dataset` or
            `IterableDataset` is one part, used whole whatever `split` is.
        split, classes: as in `open_split`. A stream without `ClassLabel`s needs `classes`.
        columns: names of the columns, `dict(image="image", label="label", mask=None, boxes=None)` or some of them.
        box_format: "xyxy", or "xywh" as in COCO; pixels of the upright image.
        config, revision, data_files: as in `load_dataset` (`config` is its `name`).
        streaming: read the images one after the other without storing them, as a `LabelledStream`.
        split_names: its names by ours, `{"valid": "dev"}`; by default train, validation (valid, val, dev) and test. If
            there is no validation part, 15 % of each class of the training part are held out for it, by
            `draw_per_class`; not from a stream.
        seed: seed of that draw.

    Raises:
        ImportError: `datasets`, of the extra `data`, is missing.
        FileNotFoundError: no such data set, part, or file.
        ValueError: no such column, invalid labels, or a class without images.
    """
    loaded, title = _load(source, config, revision, data_files, streaming)
    part, held_out = _part(loaded, title, split, split_names)
    place = f"{title}, {part}" if part else title
    dataset = loaded[part] if part else loaded
    chosen = Columns.of(columns, box_format)
    chosen.check(dataset.column_names, place)
    if not _is_whole(dataset):
        if held_out and split == "valid":
            raise FileNotFoundError(f"{title} has no validation part, and none can be held out from a stream")
        return HubStream(dataset, place, chosen, classes)
    rows = np.arange(len(dataset))
    if held_out:
        targets = HubImages(dataset, place, chosen).targets
        drawn = draw_per_class(targets, lambda count: round(HELD_OUT["valid"] * count), seed)
        rows = rows[drawn == (split == "valid")]
        _logger.info("%s has no validation part: %d of %d images are held out", place, drawn.sum(), len(drawn))
    return HubImages(dataset, place, chosen, classes, split, rows)


class HubImages(LabelledImages):
    """Images of a `datasets.Dataset`.

    Args:
        dataset: the data set.
        place: its name, for messages.
        columns: names of its columns.
        classes: as in `open_split`.
        split: part of the data set, for the check of `classes`.
        rows: take only these.

    Attributes:
        targets: int64 `[len]`, the class indices.

    Raises:
        ValueError: no rows, invalid labels, or a class without images.
    """

    def __init__(
        self,
        dataset: Any,
        place: str,
        columns: Columns,
        classes: Sequence[str] | None = None,
        split: str = "train",
        rows: np.ndarray | None = None,
    ) -> None:
        dataset = undecoded(dataset.with_format(None), columns)
        rows = np.arange(len(dataset)) if rows is None else rows
        values = dataset.select_columns([columns.label])[:][columns.label]
        names = label_names(dataset, columns.label)
        labels = [class_name(values[row], names, f"{place}, row {row}") for row in rows]
        if classes is not None:
            check_classes(set(labels), classes, split, place)
            wanted = set(classes)
            kept = [position for position, label in enumerate(labels) if label in wanted]
            rows, labels = rows[kept], [labels[position] for position in kept]
        elif names is None:
            names = [str(value) for value in sorted({value for value in values if value is not None}, key=sort_key)]
        if not labels:
            raise ValueError(f"{place} has no images")
        self.place, self.columns, self.rows, self._labels = place, columns, rows, labels
        self._column = {name: dataset.select_columns([name]) for name in columns.names if name != columns.label}
        self._set_classes(names if classes is None else classes)

    def _set_classes(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        index = {name: position for position, name in enumerate(self.class_names)}
        if len(index) != len(self.class_names):
            raise ValueError(f"a class is named twice in {self.class_names}")
        unknown = sorted(set(self._labels) - index.keys())
        if unknown:
            raise ValueError(f"class {unknown[0]!r} of {self.place} is none of the known classes {self.class_names}")
        self.targets = np.array([index[label] for label in self._labels], dtype=np.int64)

    def with_classes(self, class_names: Sequence[str]) -> HubImages:
        other = copy.copy(self)
        other._set_classes(class_names)
        return other

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return cell_image(self._cell(self.columns.image, index), self.name(index))

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def mask(self, index: int) -> np.ndarray | None:
        return cell_mask(self._cell(self.columns.mask, index), self.name(index))

    @property
    def has_masks(self) -> bool:
        return self.columns.mask is not None

    def boxes(self, index: int) -> list[Box] | None:
        return cell_boxes(self._cell(self.columns.boxes, index), self.columns.box_format, self.name(index))

    def name(self, index: int) -> str:
        return f"{self.place}, row {self.rows[index]}"

    def _cell(self, column: str | None, index: int) -> Any:
        return None if column is None else self._column[column][int(self.rows[index])][column]


def _load(source: Any, config: str | None, revision: str | None, data_files: Any, streaming: bool) -> tuple[Any, str]:
    """Return the data set, or a dictionary of its parts, and its name."""
    datasets = require("datasets", "data", "a Hugging Face data set")
    if not isinstance(source, str):
        first = next(iter(source.values())) if isinstance(source, Mapping) else source
        return _streamed(source, streaming), first.info.dataset_name or type(source).__name__
    if not source:
        raise ValueError("'hf:' names no data set: write hf:NAME or hf:FOLDER")
    path = Path(source).expanduser()
    if path.is_dir() and any((path / name).is_file() for name in SAVED):
        return _streamed(datasets.load_from_disk(str(path)), streaming), source
    if path.is_file():
        if path.suffix not in FILES:
            raise ValueError(f"{path} is none of {', '.join(FILES)}: give its folder, or data_files={{...}}")
        name, data_files = FILES[path.suffix], {"train": str(path)}
    elif path.is_absolute() or source.startswith((".", "~")):
        if not path.is_dir():
            raise FileNotFoundError(f"no folder or file {path}")
        name = str(path)
    else:
        name = source
    loaded = datasets.load_dataset(name, config, revision=revision, data_files=data_files, streaming=streaming)
    return loaded, source if config is None else f"{source} ({config})"


def _is_whole(dataset: Any) -> bool:
    """Return whether the rows of a data set can be accessed by index."""
    import datasets

    return isinstance(dataset, datasets.Dataset)


def _streamed(source: Any, streaming: bool) -> Any:
    """Return loaded parts, as streams if requested."""
    if not streaming:
        return source
    if isinstance(source, Mapping):
        return {name: _streamed(part, True) for name, part in source.items()}
    return source.to_iterable_dataset() if _is_whole(source) else source


def _part(loaded: Any, title: str, split: str, split_names: Mapping[str, str] | None) -> tuple[str | None, bool]:
    """Return the name of a part, None for a single one, and whether the validation part is to be held out from it."""
    if not isinstance(loaded, Mapping):
        return None, False
    names = dict(split_names or {})
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise ValueError(f"split_names are given for {SPLITS}, got {unknown[0]!r}")
    found = {
        ours: next((name for name in ([names[ours]] if ours in names else PART_NAMES[ours]) if name in loaded), None)
        for ours in SPLITS
    }
    if found[split] is not None:
        return found[split], split == "train" and found["valid"] is None and "valid" not in names
    if split == "valid" and "valid" not in names and found["train"] is not None:
        return found["train"], True
    hint = f"split_names={{{split!r}: ...}}"
    raise FileNotFoundError(f"{title} has no part for {split!r}; its parts: {list(loaded)}. Say {hint}")
