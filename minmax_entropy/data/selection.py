"""Selection of images from a data set: its parts, the draw of a validation part, and a choice of classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

_logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
SPLIT_SEED = 0
HELD_OUT = {"valid": 0.15, "test": 0.25}


def check_split(split: str) -> None:
    """Raise `ValueError` for any name but "train", "valid" and "test"."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")


def shuffled_classes(targets: Sequence[int], seed: int) -> Iterator[np.ndarray]:
    """Yield the indices of the images of each class that has any, in an order drawn independently of other classes.

    Class `k` with `n` images has the order of `numpy.random.default_rng([seed, k]).permutation(n)`: it is the same
    whether all classes are read or only some.

    Args:
        targets: class index of each image.
        seed: 0 or more.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    targets = np.asarray(targets)
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        yield members[np.random.default_rng([seed, int(target)]).permutation(len(members))]


def draw_per_class(targets: Sequence[int], count: Callable[[int], int], seed: int) -> np.ndarray:
    """Draw images of every class: the first ones of `shuffled_classes`.

    Args:
        targets: class index of each image.
        count: function from the number of images of a class to the number to draw.
        seed: 0 or more.

    Returns:
        Bool `[len(targets)]`, True for the images that are drawn.
    """
    drawn = np.zeros(len(targets), dtype=bool)
    for members in shuffled_classes(targets, seed):
        drawn[members[: count(len(members))]] = True
    return drawn


def check_classes(known: Collection[str], classes: Sequence[str], split: str, place: object) -> None:
    """Check the requested classes, and log which are left out and which have no images.

    Args:
        known: classes that have images.
        classes: requested classes.
        split: part of the data set; all classes must have images in "train", at least one in the other parts.
        place: the data set, for messages.

    Raises:
        ValueError: a class without images, or one that is named twice.
    """
    missing = [name for name in classes if name not in known]
    if missing and (split == "train" or len(missing) == len(classes)):
        raise ValueError(f"{place} has no images of class {missing[0]!r} for {split}; its classes: {sorted(known)}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"a class is named twice in {list(classes)}")
    for names, text in ((missing, "no images of"), (sorted(set(known) - set(classes)), "leaving out")):
        if names:
            _logger.info("%s, %s: %s %s", place, split, text, ", ".join(names))
