"""Training batches: seed, epoch and step alone determine the images of a step, however these are loaded."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from minmax_entropy.data.dataset import LabelledImages, LabelledStream, Sample
from minmax_entropy.data.images import DamagedFileError

SAMPLINGS = ("shuffle", "balanced")


class Place(NamedTuple):
    """Place of an image in the training: its random augmentation depends on this and the seed only."""

    epoch: int
    position: int  # in the order of the epoch
    index: int  # in the data set


class TrainingBatch(NamedTuple):
    """Images `[B, C, H, W]`, class indices `[B]`, their share in the step's loss, and damaged files.

    `position` is the position in a stream after the step, see `TrainingStream`.
    """

    images: Tensor
    target: Tensor
    share: float
    damaged: tuple[DamagedFileError, ...] = ()
    position: tuple[int, int] | None = None


class TrainingPlan(Sampler):
    """Batches of one process, as lists of `Place`; used as the `batch_sampler` of a `DataLoader`.

    A step has `batch_size` images over all processes. They are split into one part per process, and each part into
    `accumulation` batches. An incomplete last step of an epoch is left out, unless it is the only one.

    Args:
        targets: class index of each image.
        batch_size: images per step.
        seed: seed of the order.
        sampling: "shuffle" takes each image once per epoch; "balanced" draws as many with replacement, each class with
            the same probability.
        accumulation: batches per step and process.
        process, processes: index of this process, from 0, and number of processes.

    Attributes:
        epoch, start: epoch and first step of the next iteration.

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
        self.accumulation = accumulation
        self.parts = step_parts(self.batch_size, accumulation, process, processes)
        self.epoch = self.start = 0

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return len(self.targets) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of the images in the order of an epoch."""
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
            first = step * self.batch_size
            for places in self.parts:
                yield [Place(self.epoch, first + place, int(order[first + place])) for place in places]


def step_parts(batch_size: int, accumulation: int, process: int, processes: int) -> list[list[int]]:
    """Return the places in a step that belong to a process, by batch.

    Raises:
        ValueError: fewer images in a step than processes x accumulation.
    """
    if batch_size < accumulation * processes:
        raise ValueError(
            f"a step of {batch_size} images can't be cut into {processes} (processes) x {accumulation} "
            "(accumulation) batches: take a larger batch_size, or more images"
        )
    part = np.array_split(np.arange(batch_size), processes)[process]
    return [places.tolist() for places in np.array_split(part, accumulation)]


class TrainingImages(Dataset):
    """Data set for the trainer: transformed images and class indices by `Place`; masks are never opened.

    Args:
        dataset: the images.
        transform: function from `PIL.Image` to a tensor `[C, H, W]`. Its draws from torch, NumPy or `random` depend on
            the seed and the place of the image only.
        seed: seed of the augmentation.
        skip_damaged: replace an image that can't be read by the next one that can.

    An item is `(image, target, damaged)`, with image None if none could be read: an error raised in a loader process
    would arrive as a `RuntimeError` with a traceback as its text.
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
    """Data set for your own `DataLoader`: items are `(image [C, H, W], class index)`; masks are never opened.

    Args:
        dataset: the images.
        transform: function from `PIL.Image` to a tensor `[C, H, W]`, such as `TrainingTransform`.

    Indexing raises `DamagedFileError` for a file that can't be read.
    """

    def __init__(self, dataset: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.dataset.image(index)), self.dataset.target(index)


class Collate:
    """Collation of items of `TrainingImages` into a `TrainingBatch`; `images` is empty (`[0]`) if one can't be read."""

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
    """Return a loader of the batches of `plan`, which are the same for any number of loader processes."""
    return DataLoader(
        TrainingImages(dataset, transform, plan.seed, skip_damaged),
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=Collate(plan.batch_size),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # otherwise each iteration would draw from torch's global one
    )


class TrainingStream(IterableDataset):
    """Batches of a stream of images, for one process; both plan and data set, with the attributes of `TrainingPlan`.

    An epoch continues where the previous one ended; at its end, the stream restarts. For each pass over the stream, its
    order is drawn from a buffer of images. Every process reads the whole stream and transforms its part of each step.

    Args:
        stream: the images.
        transform, seed, skip_damaged: as for `TrainingImages`; a damaged image is replaced by another one of its step.
        steps: number of steps per epoch.
        batch_size, accumulation, process, processes: as for `TrainingPlan`.

    Attributes:
        epoch, start: epoch and first step of the next iteration.
        position: where it begins, as the index of the pass over the stream and of the image in it. Each batch holds the
            end of its step.
    """

    def __init__(
        self,
        stream: LabelledStream,
        transform: Callable[[Image.Image], Tensor],
        steps: int,
        batch_size: int,
        seed: int = 0,
        accumulation: int = 1,
        process: int = 0,
        processes: int = 1,
        skip_damaged: bool = False,
    ) -> None:
        self.stream, self.transform, self.steps = stream, transform, steps
        self.parts = step_parts(batch_size, accumulation, process, processes)
        self.batch_size, self.seed, self.skip_damaged = batch_size, seed, skip_damaged
        self.epoch = self.start = 0
        self.position = (0, 0)

    def __iter__(self) -> Iterator[TrainingBatch]:
        collate = Collate(self.batch_size)
        items = self._read(*self.position)
        for step in range(self.start, self.steps):
            read = list(itertools.islice(items, self.batch_size))
            samples = [sample for sample, _ in read]
            damaged = tuple(sample for sample in samples if isinstance(sample, DamagedFileError))
            good = [sample for sample in samples if isinstance(sample, Sample)]
            if self.skip_damaged and good:
                samples = [s if isinstance(s, Sample) else good[i % len(good)] for i, s in enumerate(samples)]
            for places in self.parts:
                batch = collate([self._item(step, place, samples[place]) for place in places])
                yield batch._replace(damaged=damaged, position=read[-1][1])

    def _read(self, number: int, offset: int) -> Iterator[tuple[Sample | DamagedFileError, tuple[int, int]]]:
        """Yield samples endlessly, each with the position after it."""
        while True:
            seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
            samples = iter(self.stream.shuffled(seed).skip(offset))
            while True:
                try:
                    sample = next(samples)
                except DamagedFileError as error:
                    sample = error
                except StopIteration:
                    break
                offset += 1
                yield sample, (number, offset)
            if not offset:
                raise ValueError("the stream gives no images")
            number, offset = number + 1, 0

    def _item(self, step: int, place: int, sample: Sample | DamagedFileError) -> tuple:
        if isinstance(sample, DamagedFileError):
            return None, -1, ()
        with random_state(self.seed, self.epoch, step * self.batch_size + place):
            return self.transform(sample.image), sample.target, ()


def stream_loader(stream: TrainingStream, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """Return a loader of the batches of a stream.

    Raises:
        ValueError: more than one loader process: each would read the whole stream.
    """
    if workers > 1:
        raise ValueError(f"a stream is read by one loader process at most, got workers={workers}")
    generator = torch.Generator()
    return DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=pin_memory, generator=generator)


@contextlib.contextmanager
def random_state(*seed: int) -> Iterator[None]:
    """Seed torch (CPU), NumPy and `random` in this block; their states are restored afterwards."""
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
