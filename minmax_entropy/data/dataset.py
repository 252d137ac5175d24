"""Interfaces of data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from minmax_entropy.data.images import BoxError, MaskSizeError

Box = tuple[float, float, float, float]
# A box may reach this many pixels beyond its image, because of rounding and of counting from 1.
BOX_SLACK = 1


class Sample(NamedTuple):
    """One labelled image."""

    image: Image.Image  # RGB
    target: int  # class index
    mask: np.ndarray | None  # bool [H, W], the image's size; for evaluation only
    name: str  # where it comes from, for messages and results
    boxes: list[Box] | None = None  # (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; for evaluation only


class LabelledImages:
    """Images with class labels and, for evaluation, masks and boxes where they exist. `dataset[i]` is a `Sample`.

    Subclasses implement `class_names`, `__len__`, `image` and `target`; `mask`, `boxes` and `name` where available; and
    `has_masks` if they implement `mask` but may hold no masks.
    Indexing raises `DamagedFileError` for a file that can't be read, a mask whose size differs from that of the image,
    and a box that does not lie in the image.
    """

    class_names: list[str]

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """Return the RGB image."""
        raise NotImplementedError

    def target(self, index: int) -> int:
        """Return the class index in `[0, len(class_names))`."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray | None:
        """Return the object pixels, bool `[H, W]`, or None if there is no mask."""
        return None

    @property
    def has_masks(self) -> bool:
        """Return whether any image may have a mask, without opening one."""
        return type(self).mask is not LabelledImages.mask

    def boxes(self, index: int) -> list[Box] | None:
        """Return boxes around the objects, `(x0, y0, x1, y1)` in pixels of the upright image, `x1` and `y1` exclusive;
        None if they are not known."""
        return None

    def name(self, index: int) -> str:
        """Return the source of an image."""
        return str(index)

    def with_classes(self, class_names: Sequence[str]) -> LabelledImages:
        """Return the same images with classes indexed by this list, which may name further classes.

        Raises:
            ValueError: a class of the images is not in the list, or the list has one twice.
        """
        if list(class_names) != self.class_names:
            raise ValueError(f"the classes are {self.class_names}, in this order; got {list(class_names)}")
        return self

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of {len(self)} images")
        name = self.name(index)
        sample = Sample(self.image(index), self.target(index), self.mask(index), name, self.boxes(index))
        check_annotations(sample)
        return sample


class LabelledStream:
    """Labelled images that are read one after the other, always in the same order. Iteration yields `Sample`s.

    Subclasses implement `class_names`, `__iter__`, `shuffled` and `skip`. An iterator that raises `DamagedFileError`
    for an image continues with the next one.

    Attributes:
        class_names: names in the order of the class indices.
        with_masks: whether masks are read; set it to True to evaluate; training never opens them.
    """

    class_names: list[str]
    with_masks: bool = False
    has_masks: bool = True  # whether any image may have one

    def __iter__(self) -> Iterator[Sample]:
        raise NotImplementedError

    def shuffled(self, seed: int, buffer_size: int = 1000) -> LabelledStream:
        """Return the images in an order drawn by `seed` from a buffer of `buffer_size`; this stream stays unchanged."""
        raise NotImplementedError

    def skip(self, count: int) -> LabelledStream:
        """Return the stream without its first `count` images (damaged ones count) in its current order, to resume an
        interrupted training."""
        raise NotImplementedError


def check_annotations(sample: Sample) -> None:
    """Raise `DamagedFileError` for a mask whose size differs from the image, or a box that does not lie in it."""
    width, height = sample.image.size
    if sample.mask is not None and sample.mask.shape != (height, width):
        sizes = f"{sample.mask.shape[0]} x {sample.mask.shape[1]}, the image is {height} x {width} (height x width)"
        raise MaskSizeError(sample.name, sizes)
    for x0, y0, x1, y1 in sample.boxes or ():
        inside = -BOX_SLACK <= x0 < x1 <= width + BOX_SLACK and -BOX_SLACK <= y0 < y1 <= height + BOX_SLACK
        if not inside:
            raise BoxError(sample.name, f"({x0:g}, {y0:g}, {x1:g}, {y1:g}), the image is {width} x {height} (x, y)")
