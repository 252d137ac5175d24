"""Metrics, against sums by hand, scikit-learn, SciPy, torchvision and naive loops."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, jaccard_score
from torchvision import ops

from minmax_entropy.metrics import (
    BoxAccuracy,
    ClassificationError,
    LocalizationAccuracy,
    LocalizationMeter,
    MaskScores,
    PixelPrecisionRecall,
    box_iou,
    box_overlaps,
    dice,
    region_boxes,
    regions,
    target_rank,
)
from minmax_entropy.metrics.names import HEADINGS
from minmax_entropy.report.tables import metrics_table

RNG = np.random.default_rng(0)


def mask_of(text):
    """Rows of "#" and "." in a string."""
    return np.array([[cell == "#" for cell in row] for row in text.split()])


# Dice


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("##.. ....", "#... ....", 2 / 3),
        ("##.. ##..", "##.. ##..", 1.0),
        ("##.. ....", "..## ....", 0.0),
        ("#### ####", "#... ....", 2 / 9),
        ("###. ....", ".### ....", 4 / 6),
        (".... ....", "#... ....", 0.0),
        (".... ....", ".... ....", 1.0),
    ],
)
def test_dice_by_hand(prediction, target, expected):
    assert dice(mask_of(prediction), mask_of(target)) == pytest.approx(expected, abs=1e-12)
    assert dice(mask_of(target), mask_of(prediction)) == pytest.approx(expected, abs=1e-12)


def test_dice_of_two_empty_masks_can_be_set():
    assert dice(np.zeros((2, 2), bool), np.zeros((2, 2), bool), empty=0.25) == 0.25


def test_dice_of_different_shapes():
    with pytest.raises(ValueError, match=r"prediction \(2, 3\) and target \(3, 2\) differ in shape"):
        dice(np.ones((2, 3), bool), np.ones((3, 2), bool))


def test_dice_does_not_overflow():
    large = np.ones((300, 300), dtype=bool)
    assert dice(large, large) == 1.0


# Pixel average precision


@pytest.mark.parametrize("share", [0.001, 0.2, 0.9])
@pytest.mark.parametrize("informative", [0.0, 0.3, 3.0])
def test_pxap_against_sklearn(share, informative):
    """On scores at the meter's resolution, over images of different sizes."""
    curve, scores, targets = PixelPrecisionRecall(), [], []
    for height, width in ((40, 50), (7, 90), (64, 33)):
        target = RNG.random((height, width)) < share
        target.flat[0] = True
        score = RNG.random((height, width)).astype(np.float32)
        score = 1 / (1 + np.exp(-(score * 4 - 2 + informative * target))).astype(np.float32)
        curve.update(score, target)
        scores.append(score.ravel())
        targets.append(target.ravel())
    scores, targets = np.concatenate(scores), np.concatenate(targets)
    expected = average_precision_score(targets, np.floor(scores * np.float32(1000)))
    assert curve.average_precision() == pytest.approx(expected, abs=1e-9)


def test_precision_and_recall_at_a_threshold():
    scores, target = RNG.random((50, 60)), RNG.random((50, 60)) < 0.3
    curve = PixelPrecisionRecall()
    curve.update(scores, target)
    precision, recall = curve.curve()
    for threshold in (0.0, 0.25, 0.5, 0.999):
        found = scores >= threshold
        place = 999 - round(threshold * 1000)
        assert precision[place] == pytest.approx((found & target).sum() / found.sum())
        assert recall[place] == pytest.approx((found & target).sum() / target.sum())


@pytest.mark.parametrize(
    ("scores", "target", "expected"),
    [
        ([0.9, 0.8, 0.1], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.1], [0, 0, 1], 1 / 3),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.25),  # all alike: the share of object pixels
        ([1.0, 0.0], [1, 0], 1.0),
        ([0.9, 0.7, 0.5, 0.3], [1, 0, 1, 0], 0.5 * 1 + 0.5 * 2 / 3),
        ([0.2, 0.4], [1, 1], 1.0),
    ],
)
def test_pxap_by_hand(scores, target, expected):
    curve = PixelPrecisionRecall()
    curve.update(np.array([scores]), np.array([target], dtype=bool))
    assert curve.average_precision() == pytest.approx(expected, abs=1e-12)


def test_pxap_without_object_pixels():
    curve = PixelPrecisionRecall()
    assert np.isnan(curve.average_precision())
    curve.update(np.ones((2, 2)), np.zeros((2, 2), bool))
    assert np.isnan(curve.average_precision())
    assert np.isfinite(curve.curve()).all()


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.999])
def test_piou_against_sklearn(threshold):
    """Over the pixels of all images, not the mean over images; on scores at the meter's resolution."""
    curve, scores, truths = PixelPrecisionRecall(), [], []
    at_threshold = MaskScores(threshold)
    for shape in ((40, 50), (7, 90), (64, 33)):
        truth = RNG.random(shape) < 0.3
        score = (np.floor(RNG.random(shape) * 1000) + 0.5) / 1000
        curve.update(score, truth)
        at_threshold.update(score, truth)
        scores.append(score.ravel())
        truths.append(truth.ravel())
    expected = jaccard_score(np.concatenate(truths), np.concatenate(scores) >= threshold)
    assert curve.iou()[999 - round(threshold * 1000)] == pytest.approx(expected, abs=1e-12)
    assert at_threshold.compute()["piou"] == pytest.approx(expected, abs=1e-12)


def test_piou_by_hand():
    curve, scores = PixelPrecisionRecall(), MaskScores(0.5)
    for mask, target in (([[0.9, 0.6, 0.3, 0.1]], "##.."), ([[0.45, 0.35, 0.7, 0.2]], "###.")):
        curve.update(np.array(mask), mask_of(target))
        scores.update(np.array(mask), mask_of(target))
    assert scores.compute()["piou"] == 3 / 5
    # From 0.3 on: 0.9, 0.6, 0.45, 0.35, 0.7 of the object and one of 0.3 beside it. Above it, up to 0.35: those alone.
    assert curve.compute() == {"pxap": 1.0, "max_piou": 1.0, "max_piou_threshold": 0.35}
    assert curve.iou()[999 - 300] == 5 / 6 and curve.iou()[999] == 5 / 8 and curve.iou()[0] == 0


def test_no_object_pixels_anywhere():
    assert PixelPrecisionRecall().compute() == {} and MaskScores().compute() == {}
    meter = LocalizationMeter(boxes=True)
    meter.update(np.full((4, 4), 0.7), np.zeros((4, 4), bool))
    result = meter.compute()
    assert all(np.isnan(result[name]) for name in ("piou", "pxap", "max_piou", "max_piou_threshold"))
    assert result["f1_foreground"] == 0 and "max_box_acc" not in result and "gt_known_loc" not in result


# Regions


def spiral(size):
    """One region whose runs meet only after many turns."""
    mask = np.zeros((size, size), dtype=bool)
    top, left, bottom, right = 0, 0, size - 1, size - 1
    while top <= bottom and left <= right:
        mask[top, left : right + 1] = mask[top : bottom + 1, right] = True
        mask[bottom, left + 1 : right + 1] = mask[top + 2 : bottom + 1, left + 1] = True
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    return mask


def masks():
    for height, width in ((1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (40, 40)):
        yield np.zeros((height, width), dtype=bool)
        yield np.ones((height, width), dtype=bool)
        for share in (0.1, 0.3, 0.45, 0.6, 0.9):
            for _ in range(10):
                yield RNG.random((height, width)) < share
    for size in (5, 16, 61):
        yield spiral(size)
        yield spiral(size).T
        yield spiral(size)[::-1, ::-1]
        yield np.indices((size, size)).sum(axis=0) % 2 == 0  # joined at the corners only
        yield np.indices((size, size)).sum(axis=0) % 3 == 0  # diagonals
        comb = np.zeros((size, size), dtype=bool)
        comb[:, ::2] = comb[-1] = True  # teeth that meet in the last row
        yield comb
        yield comb[::-1]
        corners = np.zeros((size, size), dtype=bool)
        corners[0, 0] = corners[0, -1] = corners[-1, 0] = corners[-1, -1] = True
        yield corners
    for _ in range(20):
        yield ndimage.gaussian_filter(RNG.random((50, 70)), 2) > 0.5


def naive_regions(mask):
    """Pixels and box of each 8-connected region, by SciPy."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return [
        (int((labels == number).sum()), (columns.start, rows.start, columns.stop, rows.stop))
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1)
    ]


def test_regions_against_scipy():
    total = 0
    for mask in masks():
        expected = naive_regions(mask)
        boxes = region_boxes(mask)
        total += len(boxes)
        assert sorted(boxes) == sorted(box for _, box in expected)
        order = sorted((pixels for pixels, _ in expected), reverse=True)
        for size, box in zip(order, boxes, strict=True):  # the largest first
            assert (size, box) in expected
        for least in (2, 5):
            assert sorted(region_boxes(mask, least)) == sorted(box for pixels, box in expected if pixels >= least)
    assert total > 1000


def test_region_boxes_by_hand():
    mask = mask_of("##..# .#..# ....# #...#")
    assert region_boxes(mask) == [(4, 0, 5, 4), (0, 0, 2, 2), (0, 3, 1, 4)]
    assert all(type(value) is int for box in region_boxes(mask) for value in box)  # JSON takes no NumPy integers
    assert region_boxes(mask, min_pixels=4) == [(4, 0, 5, 4)]


def test_regions_of_a_mask_from_pillow():
    """Pillow's images of one bit are boolean arrays whose bytes are 255."""
    image = Image.new("1", (6, 4))
    image.paste(1, (1, 1, 4, 3))
    mask = np.asarray(image)
    assert mask.dtype == bool and mask.view(np.uint8).max() == 255
    assert region_boxes(mask) == [(1, 1, 4, 3)]
    assert LocalizationMeter(boxes=True).update(np.array(mask, float), mask)["box_iou"] == 1


def test_rows_do_not_wrap_around():
    assert len(region_boxes(mask_of("...# #..."))) == 2
    assert len(region_boxes(mask_of("#### .... ####"))) == 2


# Boxes


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0, 0, 4, 4), (2, 0, 6, 4), 8 / 24),
        ((0, 0, 10, 1), (0, 0, 3, 1), 0.3),
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),  # neighbours: the ends are exclusive
        ((0, 0, 4, 4), (6, 6, 8, 8), 0.0),  # apart on both axes
        ((0.5, 0, 1.5, 1), (0, 0, 1, 1), 0.5 / 1.5),
    ],
)
def test_box_iou_by_hand(box, other, expected):
    assert box_iou([box], [other]).tolist() == [[expected]] == box_iou([other], [box]).tolist()


def random_boxes(count, size=40):
    corners = RNG.integers(0, size - 1, (count, 2))
    return np.concatenate([corners, corners + RNG.integers(1, size, (count, 2))], axis=1)


def test_box_iou_against_torchvision():
    first, second = random_boxes(30), random_boxes(20)
    expected = ops.box_iou(torch.tensor(first).double(), torch.tensor(second).double())
    np.testing.assert_allclose(box_iou(first, second), expected, atol=1e-12)
    assert box_iou([], second).shape == (0, 20) and box_iou(first, []).shape == (30, 0)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([(0, 0, 1)], r"expected, got shape \(1, 3\)"),
        ((0, 0, 1, 1), r"expected, got shape \(4,\)"),
        ([(0, 0, 1, 1), (3, 0, 3, 2)], r"box \[3\.0, 0\.0, 3\.0, 2\.0\] must be finite .* with x0 < x1"),
        ([(0, 5, 1, 4)], "y0 < y1"),
        ([(0, 0, float("nan"), 1)], "must be finite"),
        ([(0, 0, float("inf"), 1)], "must be finite"),
    ],
)
def test_bad_boxes(boxes, message):
    for count in (
        lambda: box_iou([(0, 0, 1, 1)], boxes),
        lambda: BoxAccuracy().update(np.ones((4, 4)), boxes),
        lambda: LocalizationMeter().update(np.ones((4, 4)), boxes=boxes),
    ):
        with pytest.raises(ValueError, match=message):
            count()


def naive_overlaps(mask, boxes, levels):
    """Threshold by threshold, with SciPy's labels and torchvision's IoU."""
    largest, best = [], []
    for threshold in np.arange(levels) / levels:
        labels, count = ndimage.label(mask >= threshold, structure=np.ones((3, 3)))
        if not count:
            largest.append(0.0)
            best.append(0.0)
            continue
        found = [(c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(labels)]
        iou = ops.box_iou(torch.tensor(found).double(), torch.tensor(np.asarray(boxes)).double()).amax(dim=1)
        pixels = np.bincount(labels.ravel())[1:]
        places = [np.flatnonzero(labels == number)[0] for number in range(1, count + 1)]
        largest.append(float(iou[min(range(count), key=lambda n: (-pixels[n], places[n]))]))
        best.append(float(iou.max()))
    return largest, best


def soft_masks(levels):
    """Masks whose values lie between the thresholds, so that rounding decides nothing."""

    def between(values):
        return (np.floor(np.clip(values, 0, 0.9999) * levels) + 0.5) / levels

    for height, width in ((1, 1), (1, 7), (9, 1), (23, 31), (32, 32)):
        yield between(RNG.random((height, width)))  # one pixel regions, most of them alike
        yield between(ndimage.gaussian_filter(RNG.random((height, width)), 2) * 3 - 1)
        yield between(RNG.integers(0, 4, (height, width)) / 4)  # most thresholds change nothing
        for value in (0.0, 0.37, 1.0):
            yield between(np.full((height, width), value))
    yield between(np.linspace(0, 1, 40)[None] * np.ones((20, 1)))
    yield between(np.where(spiral(32), 0.6, 0.2))


@pytest.mark.parametrize("levels", [1, 10, 100])
@pytest.mark.parametrize("runs", [None, 7])
def test_overlaps_against_scipy(levels, runs, monkeypatch):
    """All thresholds in one pass, and in portions."""
    if runs:
        monkeypatch.setattr(regions, "RUNS_AT_ONCE", runs)
    for mask in soft_masks(levels):
        boxes = random_boxes(RNG.integers(1, 4), 30)
        largest, best = box_overlaps(mask, boxes, levels)
        expected = naive_overlaps(mask, boxes, levels)
        np.testing.assert_allclose(largest, expected[0], atol=1e-12)
        np.testing.assert_allclose(best, expected[1], atol=1e-12)


def test_overlaps_at_the_thresholds_themselves():
    mask = np.array([[0.25, 0.5, 0.75, 1.0]], dtype=np.float32)
    largest, best = box_overlaps(mask, [(3, 0, 4, 1)], levels=4)
    assert largest.tolist() == best.tolist() == [0.25, 0.25, 1 / 3, 0.5]  # a pixel of 1.0 lies above 0.75, as 0.75 does


def test_portions_are_bounded(monkeypatch):
    """Noise has the most runs; without portions there would be one call."""
    monkeypatch.setattr(regions, "RUNS_AT_ONCE", 2000)
    sizes = []
    joined = regions._joined
    monkeypatch.setattr(regions, "_joined", lambda count, *pairs: sizes.append(count) or joined(count, *pairs))
    mask = RNG.random((64, 64))
    box_overlaps(mask, [(0, 0, 9, 9)])
    of_one = 64 * 33  # the most that a single threshold can have
    assert len(sizes) > 5 and max(sizes) <= 2000 + of_one and sum(sizes) > 50_000


def plateaus(**regions):
    """A mask of 8 x 16 that is 0 but for boxes; the keyword is the value in percent."""
    mask = np.zeros((8, 16))
    for value, (x0, y0, x1, y1) in regions.items():
        mask[y0:y1, x0:x1] = int(value[1:]) / 100
    return mask


def test_max_box_acc_by_hand():
    """One threshold for all images: each image has a good one here, and no threshold is good for both."""
    box = (0, 0, 8, 4)
    low, high = plateaus(v95=(0, 0, 2, 2)), plateaus(v65=(0, 0, 16, 8))
    low[2:4, :8] = 0.55
    low[:2, 2:8] = 0.55  # the object, from 0.00 exclusive to 0.55
    high[:4, :8] = 0.95  # the object, from 0.65 exclusive to 0.95
    accuracy = BoxAccuracy()
    accuracy.update(low, [box])
    assert accuracy.compute() == {"max_box_acc": 1.0, "max_box_acc_v2": 1.0}
    accuracy.update(high, [box])
    largest, any_region = accuracy.curve()
    assert largest.tolist() == [0.0] + [0.5] * 55 + [0.0] * 10 + [0.5] * 30 + [0.0] * 4
    assert accuracy.compute()["max_box_acc"] == 0.5
    # The whole image, 128 pixels, has an IoU of 0.25 with the object of 32: less than any delta.
    assert np.array_equal(any_region, np.stack([largest] * 3))
    accuracy.update(low, [box])
    accuracy.update(low, [])  # nothing to find: left out
    assert accuracy.compute() == {"max_box_acc": 2 / 3, "max_box_acc_v2": pytest.approx(2 / 3)}


def test_max_box_acc_v2_by_hand():
    """Any region counts, and each delta has a threshold of its own."""
    mask = plateaus(v90=(0, 0, 4, 8), v30=(6, 0, 12, 4), v60=(6, 0, 9, 4))
    small = (6, 0, 10, 4)  # 16 pixels; the region beside it of 24 pixels up to 0.30, of 12 pixels up to 0.60
    accuracy = BoxAccuracy()
    accuracy.update(mask, [small])
    largest, any_region = accuracy.curve()
    assert largest.max() == 0 == accuracy.compute()["max_box_acc"]  # the largest region is the other one
    # IoU 16 / 24 up to 0.30, then 12 / 16.
    assert any_region[2].tolist() == [0.0] * 31 + [1.0] * 30 + [0.0] * 39
    assert any_region[1].tolist() == any_region[0].tolist() == [0.0] + [1.0] * 60 + [0.0] * 39
    assert accuracy.compute()["max_box_acc_v2"] == 1.0
    accuracy.update(mask, [(6, 0, 12, 6)])  # 36 pixels: IoU 24 / 36, and 12 / 36
    assert accuracy.compute()["max_box_acc_v2"] == pytest.approx((1 + 1 + 0.5) / 3)
    accuracy.update(mask, [(0, 0, 1, 1), (0, 0, 4, 8)])  # any of the true boxes
    assert accuracy.compute()["max_box_acc"] == pytest.approx(1 / 3)


def test_iou_at_the_delta_counts():
    for delta, others in ((3, 0), (5, 1), (7, 2)):
        accuracy = BoxAccuracy()
        accuracy.update(np.ones((1, 10)), [(0, 0, delta, 1)])
        assert accuracy.compute() == {
            "max_box_acc": float(others > 0),
            "max_box_acc_v2": pytest.approx((others + 1) / 3),
        }


def test_levels():
    fine = BoxAccuracy(levels=1000)
    fine.update(plateaus(v60=(0, 0, 4, 4)), [(0, 0, 4, 4)])
    assert fine.curve()[0].tolist() == [0.0] + [1.0] * 600 + [0.0] * 399
    with pytest.raises(ValueError, match="levels is 1000 there and 100 here"):
        BoxAccuracy().merge(fine)
    for levels in (0, -1, 2.5, True, "100", 10_001):
        with pytest.raises(ValueError, match="levels must be an integer of 1 to 10000"):
            BoxAccuracy(levels)


def test_localization_by_hand():
    accuracy = LocalizationAccuracy()
    for iou, rank in ((0.5, 0), (0.49, 0), (0.9, 4), (0.9, 5), (0.2, 9)):
        accuracy.update(iou, rank=rank)
    assert accuracy.compute() == {"gt_known_loc": 3 / 5, "top1_loc": 1 / 5, "top5_loc": 2 / 5}
    accuracy.update(0.6)  # the class is not known
    accuracy.update(0.6, correct=True)  # nor the rank
    assert accuracy.compute() == {"gt_known_loc": 5 / 7, "top1_loc": 2 / 6, "top5_loc": 2 / 5}


# Classes


def test_target_rank_against_sorting():
    for _ in range(50):
        scores = RNG.integers(0, 6, RNG.integers(1, 12)).astype(float)  # with equal ones
        order = np.argsort(-scores, kind="stable").tolist()
        ranks = [target_rank(scores, target) for target in range(len(scores))]
        assert ranks == [order.index(target) for target in range(len(scores))]
        assert ranks.index(0) == scores.argmax()


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [([[1.0]], 0, "shape"), ([1.0], 1, "class 1"), ([1.0], -1, "class -1"), ([1.0, float("nan")], 0, "NaN")],
)
def test_target_rank_of_bad_scores(scores, target, message):
    with pytest.raises(ValueError, match=message):
        target_rank(np.array(scores), target)


def test_errors_by_hand():
    error = ClassificationError()
    assert error.compute() == {}
    for rank in (0, 0, 1, 4, 5, np.int64(6)):
        error.update(rank=rank)
    assert error.compute() == {"error": 4 / 6, "top5_error": 2 / 6}
    error.update(correct=True)
    error.update(correct=np.False_)
    error.update()
    assert error.compute() == {"error": 5 / 8, "top5_error": 2 / 6}
    assert ClassificationError().merge(error).compute() == error.compute()


@pytest.mark.parametrize(
    ("correct", "rank", "message"),
    [
        (True, 1, "correct=True and rank=1 contradict"),
        (np.False_, 0, "correct=False and rank=0 contradict"),
        (None, -1, "rank must be an integer of 0 or more, got -1"),
        (None, 1.0, "got 1.0"),
        (None, True, "got True"),
    ],
)
def test_bad_ranks(correct, rank, message):
    for count in (ClassificationError().update, lambda c, r: LocalizationAccuracy().update(0.5, c, r)):
        with pytest.raises(ValueError, match=message):
            count(correct, rank)


# Meter


def naive_figures(images):
    """The protocol, image by image, in plain loops."""
    foreground, background, errors, areas = [], [], [], []
    for mask, target, correct in images:
        areas.append(mask.mean())
        errors.append(not correct)
        if target is None:
            continue
        for scores, sign in ((foreground, True), (background, False)):
            both = found = there = 0
            for value, truth in zip(mask.ravel(), target.ravel(), strict=True):
                is_found, is_there = (value >= 0.5) == sign, bool(truth) == sign
                both, found, there = both + (is_found and is_there), found + is_found, there + is_there
            scores.append(1.0 if found + there == 0 else 2 * both / (found + there))
    return np.mean(errors), np.mean(foreground), np.mean(background), np.mean(areas)


def test_meter_against_a_naive_computation():
    images = []
    for index, shape in enumerate([(9, 12), (5, 5), (20, 3), (8, 8), (6, 7), (4, 4)]):
        mask = RNG.random(shape).astype(np.float32)
        images.append((mask, RNG.random(shape) < 0.3, index % 3 != 0))
    images[1][0][:] = 0.5  # at the threshold: foreground
    images[2] = (images[2][0], None, False)
    images[3] = (np.zeros((8, 8), np.float32), np.zeros((8, 8), bool), True)  # empty and rightly so
    images[4] = (np.ones((6, 7), np.float32), np.ones((6, 7), bool), True)  # no background, and rightly so
    meter, curve = LocalizationMeter(), PixelPrecisionRecall()
    for mask, target, correct in images:
        scores = meter.update(mask, target, correct)
        assert ("f1_foreground" in scores) == (target is not None)
        if target is not None:
            curve.update(mask, target)
    result = meter.compute()
    found = [result[name] for name in ("error", "f1_foreground", "f1_background", "mask_area")]
    assert found == pytest.approx(naive_figures(images), abs=1e-6)
    assert result["pxap"] == curve.average_precision() and result["max_piou"] == curve.iou().max()
    order = ["error", "f1_foreground", "f1_background", "piou", "pxap", "max_piou", "max_piou_threshold", "mask_area"]
    assert list(result) == order


def test_scores_of_an_image():
    meter = LocalizationMeter(threshold=0.7)
    mask = np.array([[0.9, 0.7], [0.69, 0.0]])
    assert meter.update(mask, mask_of("#. ..")) == {
        "mask_area": pytest.approx(2.29 / 4),
        "f1_foreground": 2 / 3,
        "f1_background": 4 / 5,
    }
    assert meter.update(mask, boxes=[(0, 0, 1, 1), (1, 1, 2, 2)]) == {
        "mask_area": pytest.approx(2.29 / 4),
        "box_iou": 0.5,
    }
    assert meter.update(np.full((2, 2), 0.69), boxes=[(0, 0, 1, 1)])["box_iou"] == 0  # no region at 0.7
    assert meter.compute()["gt_known_loc"] == 0.5


def test_meter_without_masks():
    meter = LocalizationMeter()
    for correct in (True, False, np.True_, np.False_, np.False_):
        assert meter.update(np.full((2, 2), 0.25), correct=correct) == {"mask_area": 0.25}
    assert meter.compute() == {"error": 3 / 5, "mask_area": 0.25}


def test_empty_meter():
    assert LocalizationMeter().compute() == {}


def samples(count, seed=0):
    """Images of different sizes: blobs, some without true mask, boxes, class or rank."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = rng.integers(8, 33, 2)
        field = ndimage.gaussian_filter(rng.random(shape), 2, mode="nearest")
        field = (field - field.min()) / np.ptp(field)
        target = ndimage.gaussian_filter(field + 0.3 * rng.random(shape), 1) > 0.75
        corner = rng.integers(0, 4, 2)
        box = [*corner.tolist(), *(corner + rng.integers(3, 20, 2)).tolist()]
        # Between the thresholds, those of the boxes (1/100) and of the pixels (1/1000).
        mask = (np.floor(1000 * np.clip(field, 0, 0.9999)) + 0.5) / 1000
        rank = [None, 0, 0, 1, 4, 5, 9][rng.integers(7)]
        correct = bool(rng.integers(2)) if rank is None and rng.integers(2) else None
        yield dict(
            mask=mask.astype(np.float32),
            target_mask=target if rng.random() < 0.8 else None,
            correct=correct,
            rank=rank,
            boxes=[box][: rng.integers(2)] if rng.random() < 0.5 else None,
        )


def naive_localization(images):
    """Every figure of boxes and of pixels over all images, by SciPy, torchvision and scikit-learn."""
    first, any_region, gt_known, top1, top5, errors, ranks, pixels, truths = ([] for _ in range(9))
    for image in images:
        mask, target, rank = image["mask"].astype(float), image["target_mask"], image["rank"]
        correct = image["correct"] if rank is None else rank < 1
        errors += [] if correct is None else [not correct]
        ranks += [] if rank is None else [rank > 4]
        boxes = image["boxes"]
        if target is not None:
            pixels.append(mask.ravel())
            truths.append(target.ravel())
            boxes = [box for _, box in naive_regions(target)] if boxes is None else boxes
        if boxes:
            largest, best = naive_overlaps(mask, boxes, 100)
            first.append(np.array(largest) >= 0.5)
            any_region.append(np.array(best) >= [[0.3], [0.5], [0.7]])
            found = largest[50] >= 0.5
            gt_known.append(found)
            top1 += [] if correct is None else [found and correct]
            top5 += [] if rank is None else [found and rank <= 4]
    pixels, truths = np.concatenate(pixels), np.concatenate(truths)
    return {
        "error": np.mean(errors),
        "top5_error": np.mean(ranks),
        "piou": jaccard_score(truths, pixels >= 0.5),
        "pxap": average_precision_score(truths, np.floor(pixels * 1000)),
        "max_piou": max(jaccard_score(truths, pixels >= threshold / 1000) for threshold in range(0, 1000, 10)),
        "max_box_acc": np.mean(first, axis=0).max(),
        "max_box_acc_v2": np.mean(any_region, axis=0).max(axis=1).mean(),
        "gt_known_loc": np.mean(gt_known),
        "top1_loc": np.mean(top1),
        "top5_loc": np.mean(top5),
    }


def test_all_figures_against_an_independent_computation():
    images = list(samples(60))
    meter = LocalizationMeter(boxes=True)
    for image in images:
        meter.update(**image)
    result, expected = meter.compute(), naive_localization(images)
    coarse = expected.pop("max_piou")  # at every tenth threshold
    assert 0 <= result["max_piou"] - coarse < 0.01
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert all(0.02 < result[name] < 0.98 for name in expected)  # none is at an end
    assert result["max_box_acc_v2"] != result["max_box_acc"] > result["gt_known_loc"] > result["top1_loc"]
    scored = [scores for image in images if "f1_foreground" in (scores := LocalizationMeter().update(**image))]
    for name in ("f1_foreground", "f1_background"):
        assert result[name] == pytest.approx(math.fsum(scores[name] for scores in scored) / len(scored), abs=1e-12)
    areas = [image["mask"].mean(dtype=np.float64) for image in images]
    assert result["mask_area"] == pytest.approx(np.mean(areas), abs=1e-6)


def test_when_box_metrics_are_computed():
    mask, target = plateaus(v90=(0, 0, 4, 8)), plateaus(v100=(0, 0, 4, 6)) == 1
    box = [(0, 0, 4, 8)]
    for option, given, expected in (
        (None, None, None),
        (None, box, 1.0),
        (True, None, 0.75),  # of the true mask's region
        (True, box, 1.0),
        (True, [], None),
        (False, box, None),
        (False, None, None),
    ):
        meter = LocalizationMeter(boxes=option)
        assert meter.update(mask, target, boxes=given).get("box_iou") == expected
        assert ("max_box_acc" in meter.compute()) == ("gt_known_loc" in meter.compute()) == (expected is not None)
    meter = LocalizationMeter(boxes=True)
    assert "box_iou" not in meter.update(mask) and "box_iou" not in meter.update(mask, np.zeros_like(target))
    two = target | (plateaus(v100=(10, 0, 14, 8)) == 1)  # each region is a true box
    assert meter.update(mask, two)["box_iou"] == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mask=np.array([[0.5, np.nan]])), "the mask holds NaN"),
        (dict(mask=np.array([[0.5, np.inf]])), "has values from 0.5 to inf"),
        (dict(mask=np.array([[-np.inf, np.inf]])), "the mask h"),
        (dict(mask=np.array([[-0.1, 1.0]])), r"has values from -0.1 to 1; values in \[0, 1\] are expected"),
        (dict(mask=np.array([[0.25, 1.001]])), "has values from 0.25 to 1.001"),
        (dict(mask=np.array([[0, 255]], dtype=np.uint8)), "has values from 0 to 255"),
        (dict(mask=np.ones((1, 4, 4))), r"a mask \[H, W\] is expected, got shape \(1, 4, 4\)"),
        (dict(mask=np.ones((0, 4))), r"got shape \(0, 4\)"),
        (
            dict(mask=np.ones((2, 3)), target_mask=np.ones((3, 2), bool)),
            r"mask \(2, 3\) and target_mask \(3, 2\) differ in shape",
        ),
        (dict(mask=np.ones((2, 3)), target_mask=np.ones((2, 3), np.uint8)), "must be boolean, got uint8"),
        (dict(mask=np.ones((2, 3)), boxes=[(0, 0, 0, 1)]), "x0 < x1"),
        (dict(mask=np.ones((2, 3)), correct=True, rank=2), "contradict"),
    ],
)
def test_bad_input_counts_nothing(arguments, message):
    meter = LocalizationMeter(boxes=True)
    meter.update(np.ones((2, 2)), np.eye(2, dtype=bool), rank=0)
    before = meter.state_dict()
    with pytest.raises(ValueError, match=message):
        meter.update(**arguments)
    assert_same_state(meter.state_dict(), before)


def test_rounding_at_the_ends_and_other_types():
    """Resizing may leave [0, 1] by a few 1e-7."""
    meter = LocalizationMeter(boxes=True)
    target = np.array([[True, False]])
    meter.update(np.array([[1 + 1e-6, -1e-6]]), target)
    meter.update(np.array([[True, False]]), target)
    meter.update(np.array([[1, 0]], dtype=np.uint8), target)
    meter.update(np.array([[1, 0]], dtype=np.float16), target)
    meter.update(torch.tensor([[1.0, 0.0]]), torch.tensor(target))
    assert all(meter.compute()[name] == 1 for name in ("f1_foreground", "pxap", "piou", "max_box_acc", "gt_known_loc"))
    meter = LocalizationMeter()
    meter.update(np.full((2, 2), -1e-6))
    assert LocalizationMeter().load_state_dict(meter.state_dict()).compute() == {"mask_area": 0}


def test_bad_settings():
    for threshold in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]"):
            LocalizationMeter(threshold)
    with pytest.raises(TypeError, match="boxes must be None, True or False"):
        LocalizationMeter(boxes=[(0, 0, 1, 1)])


# States


def assert_same_state(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert type(state[name]) is type(value) and np.array_equal(state[name], value), name


def filled(images):
    meter = LocalizationMeter(boxes=True)
    for image in images:
        meter.update(**image)
    return meter


def test_merging_any_split_in_any_order():
    images = list(samples(60, seed=1))
    expected = filled(images)
    rng = np.random.default_rng(2)
    for _ in range(6):
        parts = np.split(rng.permutation(len(images)), np.sort(rng.integers(0, len(images) + 1, rng.integers(1, 7))))
        meters = [filled(images[index] for index in part) for part in parts]  # some are empty
        while len(meters) > 1:  # two at random at a time
            first, second = (meters.pop(rng.integers(len(meters))) for _ in range(2))
            untouched = second.state_dict()
            meters.append(first.merge(second))
            assert meters[-1] is first
            assert_same_state(second.state_dict(), untouched)
        assert_same_state(meters[0].state_dict(), expected.state_dict())
        assert meters[0].compute() == expected.compute()


def test_merged_meters_go_on_by_themselves():
    first, second = filled(samples(5)), filled(samples(5, seed=3))
    total = LocalizationMeter().merge(first).merge(second)
    before = total.state_dict()
    first.update(np.ones((3, 3)), np.ones((3, 3), bool), rank=0)
    assert_same_state(total.state_dict(), before)
    assert_same_state(second.merge(second).state_dict(), filled([*samples(5, seed=3)] * 2).state_dict())


def test_states_travel():
    """As between processes, and as JSON."""
    meter = filled(samples(20))
    state = meter.state_dict()
    assert all(type(value) in (int, float, np.ndarray) for value in state.values())
    other = LocalizationMeter().load_state_dict(pickle.loads(pickle.dumps(state)))
    text = json.dumps({name: np.asarray(value).tolist() for name, value in state.items()})
    third = filled(samples(3)).load_state_dict(json.loads(text))  # what it had counted is gone
    for loaded in (other, third):
        assert_same_state(loaded.state_dict(), state)
        assert loaded.compute() == meter.compute()


def test_states_are_copies():
    meter = filled(samples(20))
    state = meter.state_dict()
    kept = pickle.loads(pickle.dumps(state))
    loaded = LocalizationMeter().load_state_dict(state)
    meter.update(np.ones((3, 3)), np.ones((3, 3), bool), rank=0, boxes=[(0, 0, 3, 3)])
    assert_same_state(state, kept)
    after = pickle.loads(pickle.dumps(meter.state_dict()))
    for value in state.values():
        if isinstance(value, np.ndarray):
            value += 1
    assert_same_state(loaded.state_dict(), kept)
    assert_same_state(meter.state_dict(), after)


def test_states_that_do_not_fit():
    meter = filled(samples(5))
    good = meter.state_dict()
    short = {name: value for name, value in good.items() if name != "masks.union"}
    for state, message in (
        (short, "no state of LocalizationMeter: missing or unknown are masks.union"),
        (good | {"more": 1}, "missing or unknown are more"),
        ({}, "missing or unknown are area, box_accuracy.any_region"),
        (good | {"images": -1}, "images must be integers of 0 or more"),
        (good | {"images": 1.0}, "images must be integers of 0 or more"),
        (good | {"images": None}, "images must be integers of 0 or more"),
        (good | {"images": [1, 2]}, "of shape \\(\\), got"),
        (good | {"pixels.other_pixels": np.zeros(999, int)}, "of shape \\(1000,\\)"),
        (good | {"threshold": 0.4}, r"threshold is 0\.4 there and 0\.5 here"),
        (good | {"masks.threshold": 0.4}, r"threshold is 0\.4 there and 0\.5 here"),
    ):
        with pytest.raises(ValueError, match=message):
            meter.load_state_dict(state)
        assert_same_state(meter.state_dict(), good)
    with pytest.raises(ValueError, match=r"threshold is 0\.4 there and 0\.5 here"):
        meter.merge(LocalizationMeter(0.4))
    with pytest.raises(TypeError, match="LocalizationMeter can't be merged with MaskScores"):
        meter.merge(MaskScores())
    assert_same_state(meter.state_dict(), good)


def test_bounded_memory_over_many_images():
    """10,000 images of different sizes; the boxes of every hundredth."""
    rng = np.random.default_rng(0)
    meter, sizes, shapes = LocalizationMeter(), [], set()
    for index in range(10_000):
        height, width = rng.integers(1, 33, 2)
        shapes.add((height, width))
        mask = rng.random((height, width), dtype=np.float32)
        box = [(0, 0, width, height)] if index % 100 == 0 else None
        meter.update(mask, mask > 0.9, rank=index % 7, boxes=box)
        if index in (99, 9_999):
            sizes.append(len(pickle.dumps(meter)))
    assert len(shapes) > 900 and meter.images == 10_000
    assert sizes[1] - sizes[0] < 100  # larger numbers take a byte or two more
    result = meter.compute()
    assert result["error"] == pytest.approx(6 / 7, abs=1e-3) and result["top5_error"] == pytest.approx(2 / 7, abs=1e-3)
    assert result["max_piou"] > 0.98 and result["gt_known_loc"] > 0.7


# Tables


def test_headings_of_all_figures():
    meter = filled(samples(20))
    of_evaluations = {"false_alarms": 0.25, "border_share": 0.5, "true_border_share": 0.5}
    result = meter.compute() | of_evaluations
    assert result.keys() - HEADINGS.keys() == {"max_piou_threshold"} and HEADINGS.keys() <= result.keys()
    header = metrics_table({"ours": result}).splitlines()[0]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["method", *HEADINGS.values()]
    assert "MaxBoxAcc" not in metrics_table({"ours": {"error": 0.5, "pxap": 0.5}})
