"""The bundled synthetic images: deterministic, balanced, exact, and classes that differ in texture alone."""

import numpy as np
import pytest

from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import evaluate_all_ones
from minmax_entropy.metrics import region_boxes

SIZE = 64


@pytest.fixture(scope="module")
def data():
    return SyntheticShapes(length=240, size=SIZE)


def pixels(dataset, index):
    return np.asarray(dataset.image(index))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0, 3, 1]])
def test_an_image_depends_on_seed_and_index_only(data, order):
    other = SyntheticShapes(length=4, size=SIZE)
    for index in order:
        np.testing.assert_array_equal(pixels(other, index), pixels(data, index))
        np.testing.assert_array_equal(other.instances(index), data.instances(index))
    assert other.name(3) == data.name(3)


def test_seeds_and_indices_differ(data):
    other = SyntheticShapes(length=4, size=SIZE, seed=1)
    for index in range(3):
        assert (pixels(other, index) != pixels(data, index)).mean() > 0.5
        assert (pixels(data, index + 6) != pixels(data, index)).mean() > 0.5
    assert len({data.name(index) for index in range(240)} | {other.name(0)}) == 241


def test_samples(data):
    sample = data[7]
    assert sample.image.mode == "RGB" and sample.image.size == (SIZE, SIZE)
    assert sample.mask.dtype == bool and sample.mask.shape == (SIZE, SIZE)
    assert data.class_names[sample.target] in sample.name
    assert len(data) == 240 and data[239].target == 239 % 6


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_classes_are_balanced(num_classes):
    data = SyntheticShapes(length=60, size=32, num_classes=num_classes)
    counts = np.bincount([data.target(index) for index in range(60)])
    assert counts.tolist() == [60 // num_classes] * num_classes
    assert len(set(data.class_names)) == num_classes


def test_masks_instances_and_boxes_agree(data):
    numbers = []
    for index in range(len(data)):
        instances = data.instances(index)
        numbers.append(len(instances))
        assert instances.sum(axis=0).max() == 1  # no overlap
        np.testing.assert_array_equal(data.mask(index), instances.any(axis=0))
        boxes = data.boxes(index)
        assert len(boxes) == len(instances)
        for (x0, y0, x1, y1), instance in zip(boxes, instances, strict=True):
            assert instance.sum() == instance[y0:y1, x0:x1].sum() > 0.01 * SIZE**2
            assert region_boxes(instance) == [(x0, y0, x1, y1)]  # in one piece
    assert set(numbers) == {1, 2, 3} and min(np.bincount(numbers)[1:]) > 10


def test_all_ones_scores_low():
    metrics = evaluate_all_ones(SyntheticShapes(length=200, size=SIZE, seed=1))
    assert 0.15 < metrics["f1_foreground"] < 0.4 and metrics["f1_background"] == 0 and metrics["mask_area"] == 1


def test_the_class_changes_the_objects_alone(data):
    """The same image with another class: the same background, masks, and noise; other pixels in the objects."""
    other = SyntheticShapes(length=240, size=SIZE, num_classes=5)
    changed = inside = 0
    for index in range(5, 60):
        if data.target(index) == other.target(index):
            continue
        np.testing.assert_array_equal(data.instances(index), other.instances(index))
        mask = data.mask(index)
        difference = (pixels(data, index) != pixels(other, index)).any(axis=2)
        assert not difference[~mask].any()
        changed, inside = changed + difference[mask].sum(), inside + mask.sum()
    assert 0.2 < changed / inside < 0.9


def test_background_statistics_are_those_of_every_class(data):
    """Mean and contrast of the background and area of the objects: no class is off by more than chance."""
    figures = []
    for index in range(len(data)):
        background = pixels(data, index)[~data.mask(index)]
        figures.append([background.mean(), background.std(), data.mask(index).mean()])
    figures = np.array(figures).reshape(-1, 6, 3)  # [image, class, figure]
    error = figures.reshape(-1, 3).std(axis=0) / np.sqrt(figures.shape[0])
    deviation = np.abs(figures.mean(axis=0) - figures.mean(axis=(0, 1))) / error
    assert deviation.max() < 3.5


def test_a_single_pixel_does_not_give_the_class_away(data):
    """Colours inside the objects: the class means agree up to chance."""
    means = np.array([pixels(data, index)[data.mask(index)].mean() for index in range(len(data))]).reshape(-1, 6)
    error = means.std() / np.sqrt(len(means))
    assert np.abs(means.mean(axis=0) - means.mean()).max() / error < 3.5


def test_sizes():
    for size in (32, 33, 100):
        data = SyntheticShapes(length=12, size=size)
        assert all(data.image(index).size == (size, size) for index in range(12))
        assert 0.05 < np.mean([data.mask(index).mean() for index in range(12)]) < 0.4


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(length=0), "length must be 1 or more, got 0"),
        (dict(length=-1), "length must be 1 or more, got -1"),
        (dict(size=31), "size must be 32 pixels or more, got 31"),
        (dict(num_classes=1), "num_classes must be 2 to 6, got 1"),
        (dict(num_classes=7), "num_classes must be 2 to 6, got 7"),
    ],
)
def test_bad_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        SyntheticShapes(**keywords)


@pytest.mark.parametrize("take", [lambda data, i: data[i], SyntheticShapes.image, SyntheticShapes.boxes])
@pytest.mark.parametrize("index", [-1, 240])
def test_index_out_of_range(data, take, index):
    with pytest.raises(IndexError, match=f"index {index} is outside of 240 images"):
        take(data, index)


def test_empty_images():
    """The same clutter, and nothing on it."""
    empty, data = SyntheticShapes(length=3, size=64, seed=5, empty=True), SyntheticShapes(length=3, size=64, seed=5)
    for index in range(3):
        assert empty.instances(index).shape == (0, 64, 64) and not empty.mask(index).any() and empty.boxes(index) == []
        difference = np.abs(np.asarray(empty.image(index), dtype=int) - np.asarray(data.image(index))).max(axis=2)
        outside = ~data.mask(index)
        assert np.median(difference[outside]) < 40 < np.median(difference[data.mask(index)])
