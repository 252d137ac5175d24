"""Training batches and parts of data sets: which images, in which order, whatever reads them."""

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minmax_entropy.data import (
    DamagedFileError,
    ImageFiles,
    LabelledImages,
    Record,
    Subset,
    SyntheticShapes,
    TrainingImages,
    TrainingPlan,
    TrainingTransform,
    TransformedImages,
    class_weights,
    few_shots,
    fold,
    training_loader,
)
from minmax_entropy.data.loading import Collate, Place, random_state


class Numbers(LabelledImages):
    """Images of 4 x 4 pixels whose value is their number; those in `damaged` can't be read, masks never."""

    def __init__(self, targets, damaged=(), class_names="abc"):
        self.targets, self.damaged, self.class_names = targets, damaged, list(class_names)

    def __len__(self):
        return len(self.targets)

    def image(self, index):
        if index in self.damaged:
            raise DamagedFileError(f"{index}.png", "broken")
        return Image.new("RGB", (4, 4), (index, index, index))

    def target(self, index):
        return self.targets[index]

    def mask(self, index):
        raise AssertionError("a mask was opened")

    def name(self, index):
        return f"{index}.png"


def value(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def noisy(image):
    """Draws from all three generators."""
    return value(image) + torch.rand(1) + np.random.rand() + random.random()


# The plan


def steps_of(plan):
    """Batches of an epoch, grouped by step."""
    batches = list(plan)
    return [batches[at : at + plan.accumulation] for at in range(0, len(batches), plan.accumulation)]


def test_order_takes_each_image_once():
    plan = TrainingPlan([0] * 10, 5, seed=3)
    assert sorted(plan.order(0)) == sorted(plan.order(1)) == list(range(10))
    assert plan.order(0).tolist() == TrainingPlan([0] * 10, 2, seed=3).order(0).tolist()
    assert len({tuple(plan.order(0)), tuple(plan.order(1)), tuple(TrainingPlan([0] * 10, 5, seed=4).order(0))}) == 3


def test_places():
    """7 images in steps of 3: two steps, the last image of the order is left out."""
    plan = TrainingPlan([0] * 7, 3, seed=1)
    plan.epoch = 2
    order = plan.order(2)
    assert list(plan) == [[Place(2, position, order[position]) for position in step] for step in ((0, 1, 2), (3, 4, 5))]
    assert len(plan) == plan.steps == 2


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_steps_are_the_same_for_any_split(processes, accumulation):
    """What all processes and parts take together is one process's step, in its order; their shares sum to 1."""
    targets = [index % 3 for index in range(20)]
    whole = TrainingPlan(targets, 7, seed=5)
    plans = [
        TrainingPlan(targets, 7, seed=5, accumulation=accumulation, process=process, processes=processes)
        for process in range(processes)
    ]
    collate = Collate(whole.batch_size)
    dataset = TrainingImages(Numbers(targets), value)
    for plan in (whole, *plans):
        plan.epoch = 1
    parts = [steps_of(plan) for plan in plans]
    for step, expected in enumerate(list(whole)):
        batches = [batch for part in parts for batch in part[step]]
        assert len(batches) == processes * accumulation and all(batches)
        assert [place for batch in batches for place in batch] == expected
        sizes = [len(batch) for part in parts for batch in part[step]]
        assert max(sizes) - min(sizes) <= 2
        assert sum(collate([dataset[place] for place in batch]).share for batch in batches) == pytest.approx(1)
    assert all(
        len(part) == whole.steps == 2 and len(plan) == 2 * accumulation for part, plan in zip(parts, plans, strict=True)
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_later_start_gives_the_tail(accumulation):
    plan = TrainingPlan([0] * 20, 6, accumulation=accumulation)
    everything = list(plan)
    for start in range(plan.steps + 1):
        plan.start = start
        assert list(plan) == everything[start * accumulation :] and len(plan) == len(everything) - start * accumulation


def test_fewer_images_than_a_step():
    plan = TrainingPlan([0, 1, 0], 16)
    assert plan.batch_size == 3 and plan.steps == 1 and [len(batch) for batch in plan] == [3]


def test_balanced_sampling():
    """60, 30 and 10 images: each class is drawn a third of the time, the images of a class alike."""
    targets = [0] * 60 + [1] * 30 + [2] * 10
    plan = TrainingPlan(targets, 10, sampling="balanced")
    drawn = np.concatenate([plan.order(epoch) for epoch in range(60)])  # 6000
    classes = Counter(np.asarray(targets)[drawn].tolist())
    assert all(abs(classes[number] - 2000) < 5 * 36.5 for number in range(3))  # sqrt(6000 / 3 * 2 / 3)
    counts = np.bincount(drawn, minlength=100)
    assert all(abs(counts[index] - 200) < 5 * 14 for index in range(90, 100))
    assert len(plan.order(0)) == 100 and plan.order(0).tolist() != plan.order(1).tolist()


def test_balanced_sampling_without_a_class():
    plan = TrainingPlan([0] * 9 + [2], 5, sampling="balanced")
    drawn = np.concatenate([plan.order(epoch) for epoch in range(100)])
    assert abs((drawn == 9).mean() - 0.5) < 5 * 0.016


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(batch_size=4, sampling="often"), r"sampling must be one of \('shuffle', 'balanced'\), got 'often'"),
        (dict(batch_size=5, accumulation=3, processes=2), "a step of 5 images can't be cut into 2 .* x 3"),
        (dict(batch_size=100, accumulation=11), "a step of 10 images can't be cut into 1 .* x 11"),
        (dict(batch_size=0), "a step of 0 images"),
    ],
)
def test_bad_plans(keywords, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan([0] * 10, **keywords)


# Items and batches


def test_item_depends_on_seed_and_place_only():
    dataset = TrainingImages(Numbers([0, 1, 2]), noisy, seed=4)
    place = Place(1, 5, 2)
    image, target, damaged = dataset[place]
    torch.rand(3), np.random.rand(3), random.random()
    assert dataset[place][0].equal(image) and (target, damaged) == (2, ())
    others = [Place(2, 5, 2), Place(1, 6, 2)]
    assert not any(dataset[other][0].equal(image) for other in others)
    assert not TrainingImages(Numbers([0, 1, 2]), noisy, seed=5)[place][0].equal(image)


def test_random_state_is_put_back():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    def seed():
        torch.manual_seed(1), np.random.seed(1), random.seed(1)

    seed()
    expected = draw()
    seed()
    with random_state(7, 8):
        first = draw()
    with pytest.raises(KeyError), random_state(7, 8):
        assert draw() == first
        raise KeyError
    assert draw() == expected
    with random_state(8, 7):
        assert draw() != first


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_workers(workers):
    """By hand, over two epochs, the second from a later step on; torch's own generator stays untouched."""
    numbers = Numbers([index % 3 for index in range(14)])
    plan = TrainingPlan(numbers.targets, 4, seed=2)
    loader = training_loader(numbers, noisy, plan, workers)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for plan.epoch, plan.start in ((0, 0), (3, 1)):
        batches = list(loader)
        assert len(batches) == len(loader) == 3 - plan.start
        for step, batch in enumerate(batches, start=plan.start):
            indices = plan.order(plan.epoch)[4 * step : 4 * step + 4]
            assert batch.target.tolist() == [index % 3 for index in indices]
            assert batch.target.dtype == torch.int64 and batch.share == 1 and batch.damaged == ()
            for offset, (image, index) in enumerate(zip(batch.images, indices, strict=True)):
                with random_state(2, plan.epoch, 4 * step + offset):
                    assert image.equal(noisy(numbers.image(index)))
    assert torch.random.get_rng_state().equal(state)


def test_damaged_images_are_substituted():
    """2 and 3 are damaged: 4 takes the place of both; 5 is followed by 0."""
    numbers = Numbers([0, 1, 2, 0, 1, 2], damaged=(2, 3, 5))
    dataset = TrainingImages(numbers, value, skip_damaged=True)
    for index, instead, damaged in ((1, 1, []), (2, 4, ["2.png", "3.png"]), (3, 4, ["3.png"]), (5, 0, ["5.png"])):
        image, target, errors = dataset[Place(0, 0, index)]
        assert (image == instead).all() and target == numbers.targets[instead]
        assert [error.path for error in errors] == damaged


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_unreadable_images(skip_damaged):
    """An error does not cross from a loader process; it comes with the batch."""
    numbers = Numbers([0, 1], damaged=(0, 1) if skip_damaged else (1,))
    dataset = TrainingImages(numbers, value, skip_damaged=skip_damaged)
    items = [dataset[Place(0, position, position)] for position in range(2)]
    batch = Collate(4)(items)
    assert batch.images.shape == (0,) and batch.share == 0.5
    assert Counter(error.path for error in batch.damaged) == (
        {"0.png": 2, "1.png": 2} if skip_damaged else {"1.png": 1}
    )


def test_transformed_images():
    """For a `DataLoader` of one's own: masks stay closed, and damage is an error."""
    dataset = TransformedImages(Numbers([0, 1, 2], damaged=(2,)), value)
    images, target = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
    assert images[:, 0, 0, 0].tolist() == [0, 1] and target.tolist() == [0, 1] and len(dataset) == 3
    with pytest.raises(DamagedFileError, match=r"2\.png can't be read"):
        dataset[2]


# Parts of data sets


def test_subset_of_several():
    first, second = Numbers([0, 1]), Numbers([2, 0, 1])
    both = Subset([first, second])
    assert len(both) == 5 and [both.target(index) for index in range(5)] == [0, 1, 2, 0, 1]
    assert [both.name(index) for index in range(5)] == ["0.png", "1.png", "0.png", "1.png", "2.png"]
    chosen = Subset([first, second], [4, 1, 2])
    assert [np.asarray(chosen.image(index))[0, 0, 0] for index in range(3)] == [2, 1, 0]
    assert Subset(chosen, [2]).target(0) == 2 and chosen.class_names == ["a", "b", "c"]


def test_subset_passes_everything_through():
    shapes = SyntheticShapes(length=6, size=32)
    subset = Subset(shapes, [5, 3])
    for index, inner in enumerate((5, 3)):
        assert subset.image(index) == shapes.image(inner) and (subset.mask(index) == shapes.mask(inner)).all()
        assert subset.boxes(index) == shapes.boxes(inner) and subset[index].name == shapes.name(inner)
    assert subset.has_masks and not Subset(ImageFiles([Record(Path("a.png"), None, "a")])).has_masks
    with pytest.raises(IndexError, match="index 2 is outside of 2 images"):
        subset[2]


def test_subset_of_different_classes():
    with pytest.raises(ValueError, match=r"data sets of different classes: \['a', 'b', 'c'\] and \['a', 'b'\]"):
        Subset([Numbers([0]), Numbers([0], class_names="ab")])


@pytest.mark.parametrize("index", [-1, 3])
def test_subset_outside(index):
    with pytest.raises(IndexError, match=f"index {index} is outside of 3 images"):
        Subset([Numbers([0, 1]), Numbers([2])], [0, index])


LONG = Numbers([0] * 11 + [1] * 4 + [2] * 7)


def test_few_shots():
    """Nested, at most so many of each class, another draw for another seed."""
    parts = [few_shots(LONG, shots, seed=1).indices for shots in (1, 3, 5, 100)]
    for shots, part in zip((1, 3, 5, 100), parts, strict=True):
        counts = Counter(LONG.targets[index] for index in part)
        assert counts == {0: min(shots, 11), 1: min(shots, 4), 2: min(shots, 7)} and len(set(part)) == len(part)
    assert all(set(fewer) < set(more) for fewer, more in itertools.pairwise(parts))
    assert few_shots(LONG, 3, seed=1).indices == parts[1] != few_shots(LONG, 3, seed=2).indices
    assert parts[0] == sorted(
        np.flatnonzero(np.array(LONG.targets) == k)[np.random.default_rng([1, k]).permutation(n)[0]]
        for k, n in enumerate((11, 4, 7))
    )
    with pytest.raises(ValueError, match="shots must be 1 or more, got 0"):
        few_shots(LONG, 0)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds(folds):
    """Disjoint, covering, stratified, and of one size, up to an image."""
    parts = [fold(LONG, number, folds, seed=1) for number in range(folds)]
    held = [valid.indices for _, valid in parts]
    assert sorted(index for part in held for index in part) == list(range(22))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for train, valid in parts:
        assert sorted(train.indices + valid.indices) == list(range(22))
    for target in range(3):
        counts = [sum(LONG.targets[index] == target for index in part) for part in held]
        assert max(counts) - min(counts) <= 1
    assert held != [fold(LONG, number, folds, seed=2)[1].indices for number in range(folds)]


def test_folds_of_several():
    """Training and validation images are taken together, and images are not mixed up."""
    first, second = Numbers([0] * 4 + [1] * 4), Numbers([1, 0])
    names = [
        part.name(index) for _, part in (fold([first, second], k, 2) for k in (0, 1)) for index in range(len(part))
    ]
    assert Counter(names) == Counter([f"{index}.png" for index in (*range(8), 0, 1)])


@pytest.mark.parametrize(
    ("number", "folds", "message"),
    [
        (0, 1, "folds must be 2 or more, got 1"),
        (3, 3, r"the number of the fold must be in \[0, 3\), got 3"),
        (-1, 3, r"the number of the fold must be in \[0, 3\), got -1"),
        (0, 23, "22 images can't be cut into 23 folds"),
    ],
)
def test_bad_folds(number, folds, message):
    with pytest.raises(ValueError, match=message):
        fold(LONG, number, folds)


def test_class_weights():
    """22 images, 11, 4 and 7 of a class: 22 / (3 * n)."""
    assert class_weights(LONG) == pytest.approx([22 / 33, 22 / 12, 22 / 21])
    assert np.mean([class_weights(LONG)[target] for target in LONG.targets]) == pytest.approx(1)
    assert class_weights(Numbers([0, 0, 0, 2])) == pytest.approx([4 / 6, 0, 2])


def test_transform_in_the_loader():
    """The library's own transform, as the trainer uses it."""
    shapes = SyntheticShapes(length=6, size=32)
    transform = TrainingTransform("crop", 32, (0.5,) * 3, (0.5,) * 3)
    plans = [TrainingPlan([0] * 6, 3, seed=1) for _ in range(2)]
    first, second = (list(training_loader(shapes, transform, plan)) for plan in plans)
    assert all(a.images.equal(b.images) for a, b in zip(first, second, strict=True)) and first[0].images.shape[1:] == (
        3,
        32,
        32,
    )
