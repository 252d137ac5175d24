"""Training batches: which images make up a step is decided by seed, epoch and step alone, whatever reads them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from minmax_entropy.data.dataset import LabelledImages
from minmax_entropy.data.images import DamagedFileError

SAMPLINGS = ("shuffle", "balanced")


class Place(NamedTuple):
    """An image's place in the training: what is random about it depends on this and the seed only."""

    epoch: int
    position: int  # in the order of the epoch
    index: int  # in the data set


class TrainingBatch(NamedTuple):
    """Images `[B, C, H, W]`, class indices `[B]`, the part of the step's loss that they make up, damaged files."""

    images: Tensor
    target: Tensor
    share: float
    damaged: tuple[DamagedFileError, ...] = ()


class TrainingPlan(Sampler):
    """The batches of one process, as lists of `Place`; give it to a `DataLoader` as its `batch_sampler`.

    A step has `batch_size` images over all processes. They are cut into as many parts as there are processes, and each
    part into `accumulation` batches. A remainder of an epoch is left out, unless it is all there is.

    Args:
        targets: class index of each image.
        batch_size: images a step.
        seed: of the order.
        sampling: "shuffle" takes each image once an epoch; "balanced" draws as many with replacement, each class with
            the same probability.
        accumulation: batches a step and process.
        process, processes: number of this process, from 0, and how many there are.

    Attributes:
        epoch, start: what the next iteration gives: the epoch, from this step on.

    Raises:
        ValueError: fewer images in a step than processes x accumulation.
    """

    def __init__(
        self,
        targets: Sequence[int],
        batch_size: int,
        seed: int = 0,
        sampling: str = "shuffle",
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
        self.targets = np.asarray(targets)
        self.batch_size = min(batch_size, len(self.targets))
        self.seed, self.sampling = seed, sampling
        self.accumulation, self.process, self.processes = accumulation, process, processes
        if self.batch_size < accumulation * processes:
            raise ValueError(
                f"a step of {self.batch_size} images can't be cut into {processes} (processes) x {accumulation} "
                "(accumulation) batches: take a larger batch_size, or more images"
            )
        self.epoch = self.start = 0

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.targets) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the images in the order in which an epoch takes them."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.sampling == "shuffle":
            return rng.permutation(len(self.targets))
        classes, index, counts = np.unique(self.targets, return_inverse=True, return_counts=True)
        weights = 1 / (len(classes) * counts[index])
        return rng.choice(len(self.targets), size=len(self.targets), p=weights)

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[Place]]:
        order = self.order(self.epoch)
        for step in range(self.start, self.steps):
            positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            part = np.array_split(positions, self.processes)[self.process]
            for batch in np.array_split(part, self.accumulation):
                yield [Place(self.epoch, int(position), int(order[position])) for position in batch]


class TrainingImages(Dataset):
    """A data set as the trainer reads it: transformed images and class indices by `Place`; masks are never opened.

    Args:
        dataset: the images.
        transform: `PIL.Image` to a tensor `[C, H, W]`. What it draws from torch, NumPy or `random` depends on the seed
            and the place of the image only.
        seed: of the augmentation.
        skip_damaged: give the next image that can be read in the place of one that can't.

    An item is `(image, target, damaged)`, the image None where none could be read: an error that is raised in a loader
    process would arrive as a `RuntimeError` with a traceback for its text.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        skip_damaged: bool = False,
    ) -> None:
        self.dataset, self.transform, self.seed, self.skip_damaged = dataset, transform, seed, skip_damaged

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> tuple[Tensor | None, int, tuple[DamagedFileError, ...]]:
        damaged = []
        for offset in range(len(self) if self.skip_damaged else 1):
            index = (place.index + offset) % len(self)
            try:
                image = self.dataset.image(index)
            except DamagedFileError as error:
                damaged.append(error)
                continue
            with random_state(self.seed, place.epoch, place.position):
                return self.transform(image), self.dataset.target(index), tuple(damaged)
        return None, -1, tuple(damaged)


class TransformedImages(Dataset):
    """A data set for a `DataLoader` of your own: items are `(image [C, H, W], class index)`; masks are never opened.

    Args:
        dataset: the images.
        transform: `PIL.Image` to a tensor `[C, H, W]`, such as `TrainingTransform`.

    Taking an item raises `DamagedFileError` for a file that can't be read.
    """

    def __init__(self, dataset: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.dataset.image(index)), self.dataset.target(index)


class Collate:
    """Items of `TrainingImages` as a `TrainingBatch`; `images` is empty (`[0]`) if one of them could not be read."""

    def __init__(self, step_size: int) -> None:
        self.step_size = step_size

    def __call__(self, items: Sequence[tuple[Tensor | None, int, tuple[DamagedFileError, ...]]]) -> TrainingBatch:
        damaged = tuple(error for *_, errors in items for error in errors)
        images = [image for image, *_ in items]
        readable = not any(image is None for image in images)
        return TrainingBatch(
            torch.stack(images) if readable else torch.empty(0),
            torch.tensor([target for _, target, _ in items], dtype=torch.int64),
            len(items) / self.step_size,
            damaged,
        )


def training_loader(
    dataset: LabelledImages,
    transform: Callable[[Image.Image], Tensor],
    plan: TrainingPlan,
    workers: int = 0,
    skip_damaged: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of `plan`; the same ones for any number of loader processes."""
    return DataLoader(
        TrainingImages(dataset, transform, plan.seed, skip_damaged),
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=Collate(plan.batch_size),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # it would draw from torch's own otherwise, each time an iteration begins
    )


@contextlib.contextmanager
def random_state(*seed: int) -> Iterator[None]:
    """Seed torch (CPU), NumPy and `random` for a while; their states are put back afterwards."""
    value = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(value)
    np.random.seed(value)
    torch.random.default_generator.manual_seed(value)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
