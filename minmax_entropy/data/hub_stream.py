"""Streams of Hugging Face `datasets`: images are read one after the other, and not stored."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minmax_entropy.data.dataset import LabelledStream, Sample, check_annotations
from minmax_entropy.data.hub_columns import (
    Columns,
    cell_boxes,
    cell_image,
    cell_mask,
    class_name,
    label_names,
    undecoded,
)


class HubStream(LabelledStream):
    """Images of a `datasets.IterableDataset`, one after the other.

    Args:
        dataset: the data set.
        place: its name, for messages.
        columns: names of its columns.
        classes: take only these, indexed in this order; by default the names of the labels' `ClassLabel`.

    Iteration raises `DamagedFileError` for an image that can't be read, and continues with the next one.

    Raises:
        ValueError: neither `classes` nor label names; in iteration, an invalid label, or no image of the classes.
    """

    def __init__(self, dataset: Any, place: str, columns: Columns, classes: Sequence[str] | None = None) -> None:
        self.label_names = label_names(dataset, columns.label)
        if classes is None and self.label_names is None:
            raise ValueError(
                f"{place} is read as a stream, and the column {columns.label!r} has no names: give classes=[...]"
            )
        self.class_names = list(self.label_names if classes is None else classes)
        self.index = {name: position for position, name in enumerate(self.class_names)}
        if len(self.index) != len(self.class_names):
            raise ValueError(f"a class is named twice in {self.class_names}")
        self.dataset = undecoded(dataset.with_format(None), columns)
        self.place, self.columns, self.skipped = place, columns, 0

    def __iter__(self) -> Iterator[Sample]:
        return _Samples(self)

    def shuffled(self, seed: int, buffer_size: int = 1000) -> HubStream:
        other = copy.copy(self)
        other.dataset = self.dataset.shuffle(seed=seed, buffer_size=buffer_size)
        return other

    @property
    def has_masks(self) -> bool:
        return self.columns.mask is not None

    def skip(self, count: int) -> HubStream:
        if count < 0:
            raise ValueError(f"the number of images to skip must be 0 or more, got {count}")
        other = copy.copy(self)
        other.skipped = self.skipped + count
        return other


class _Samples:
    """Iterator over a stream. A generator would end at the first error that it raises for a damaged image."""

    def __init__(self, stream: HubStream) -> None:
        columns = stream.columns
        names = [name for name in columns.names if stream.with_masks or name != columns.mask]
        self.stream, self.with_masks = stream, stream.with_masks
        self.rows = enumerate(stream.dataset.select_columns(names))
        self.to_skip, self.seen = stream.skipped, 0

    def __iter__(self) -> _Samples:
        return self

    def __next__(self) -> Sample:
        stream, columns = self.stream, self.stream.columns
        for number, row in self.rows:
            place = f"{stream.place}, row {number} of the stream"
            target = stream.index.get(class_name(row[columns.label], stream.label_names, place))
            if target is None:
                continue
            self.seen += 1
            if self.seen > self.to_skip:
                return self._sample(row, target, place)
        if not self.seen:
            raise ValueError(f"{stream.place} has no images of the classes {stream.class_names}")
        raise StopIteration

    def _sample(self, row: Mapping[str, Any], target: int, place: str) -> Sample:
        columns = self.stream.columns
        image = cell_image(row[columns.image], place)
        mask = cell_mask(row[columns.mask], place) if self.with_masks and columns.mask is not None else None
        boxes = None if columns.boxes is None else cell_boxes(row[columns.boxes], columns.box_format, place)
        sample = Sample(image, target, mask, place, boxes)
        check_annotations(sample)
        return sample
