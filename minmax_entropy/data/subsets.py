"""Parts of a data set: selected images, a few of each class, folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from minmax_entropy.data.dataset import LabelledImages
from minmax_entropy.data.selection import shuffled_classes


class Subset(LabelledImages):
    """Subset of a data set, or of several concatenated ones with the same classes.

    Args:
        dataset: the images, or a sequence of data sets.
        indices: images to take, in this order; all by default.

    Raises:
        ValueError: the data sets have different classes.
        IndexError: an index out of range.
    """

    def __init__(
        self, dataset: LabelledImages | Sequence[LabelledImages], indices: Sequence[int] | None = None
    ) -> None:
        self.datasets = [dataset] if isinstance(dataset, LabelledImages) else list(dataset)
        self.class_names = self.datasets[0].class_names
        for other in self.datasets[1:]:
            if other.class_names != self.class_names:
                raise ValueError(f"data sets of different classes: {self.class_names} and {other.class_names}")
        self._ends = np.cumsum([len(part) for part in self.datasets])
        self.indices = list(range(self._ends[-1])) if indices is None else [int(index) for index in indices]
        for index in self.indices:
            if not 0 <= index < self._ends[-1]:
                raise IndexError(f"index {index} is outside of {self._ends[-1]} images")

    def __len__(self) -> int:
        return len(self.indices)

    def _place(self, index: int) -> tuple[LabelledImages, int]:
        inner = self.indices[index]
        part = int(np.searchsorted(self._ends, inner, side="right"))
        return self.datasets[part], inner - (int(self._ends[part - 1]) if part else 0)

    def image(self, index: int) -> Image.Image:
        dataset, inner = self._place(index)
        return dataset.image(inner)

    def target(self, index: int) -> int:
        dataset, inner = self._place(index)
        return dataset.target(inner)

    def mask(self, index: int) -> np.ndarray | None:
        dataset, inner = self._place(index)
        return dataset.mask(inner)

    @property
    def has_masks(self) -> bool:
        return any(dataset.has_masks for dataset in self.datasets)

    def boxes(self, index: int) -> list[tuple[float, float, float, float]] | None:
        dataset, inner = self._place(index)
        return dataset.boxes(inner)

    def name(self, index: int) -> str:
        dataset, inner = self._place(index)
        return dataset.name(inner)


def targets_of(dataset: LabelledImages) -> list[int]:
    """Return the class index of each image."""
    return [dataset.target(index) for index in range(len(dataset))]


def few_shots(dataset: LabelledImages, shots: int, seed: int = 0) -> Subset:
    """Return at most `shots` images of each class, drawn by `seed`; more shots include the images of fewer.

    Raises:
        ValueError: `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be 1 or more, got {shots}")
    drawn = (members[:shots] for members in shuffled_classes(targets_of(dataset), seed))
    return Subset(dataset, sorted(index for members in drawn for index in members))


def fold(
    dataset: LabelledImages | Sequence[LabelledImages], number: int, folds: int, seed: int = 0
) -> tuple[Subset, Subset]:
    """Return the training and validation parts of a stratified k-fold cross-validation.

    Args:
        dataset: the images, or several data sets to combine (those for training and validation).
        number: index of the validation fold, from 0.
        folds: number of folds, 2 or more.
        seed: seed of the draw.

    Returns:
        The images of the other folds, and those of this one. Each image is in one fold, and the folds of a class differ
        by at most one image.

    Raises:
        ValueError: a number out of its range, or fewer images than folds.
    """
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    if not 0 <= number < folds:
        raise ValueError(f"the number of the fold must be in [0, {folds}), got {number}")
    whole = dataset if isinstance(dataset, LabelledImages) else Subset(dataset)
    # Classes are dealt to the folds one after the other, so that total sizes differ by at most one image as well.
    order = [int(index) for members in shuffled_classes(targets_of(whole), seed) for index in members]
    if len(order) < folds:
        raise ValueError(f"{len(order)} images can't be cut into {folds} folds")
    held = set(order[number::folds])
    parts = [index for index in range(len(whole)) if index not in held], sorted(held)
    return Subset(whole, parts[0]), Subset(whole, parts[1])


def class_weights(dataset: LabelledImages) -> list[float]:
    """Compute weights against class imbalance, `N / (K' * n_k)` with K' classes that have images, 0 for the others.

    Their mean over the images is 1.
    """
    counts = np.bincount(targets_of(dataset), minlength=len(dataset.class_names))
    weights = np.divide(len(dataset), (counts > 0).sum() * counts, out=np.zeros(len(counts)), where=counts > 0)
    return weights.tolist()
