"""Metrics, against sums by hand, scikit-learn, SciPy and naive loops."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score

from minmax_entropy.metrics import LocalizationMeter, PixelPrecisionRecall, dice, region_boxes

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


def test_rows_do_not_wrap_around():
    assert len(region_boxes(mask_of("...# #..."))) == 2
    assert len(region_boxes(mask_of("#### .... ####"))) == 2


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
        assert (scores is None) == (target is None)
        if target is not None:
            curve.update(mask, target)
    result = meter.compute()
    found = [result[name] for name in ("error", "f1_foreground", "f1_background", "mask_area")]
    assert found == pytest.approx(naive_figures(images), abs=1e-6)
    assert result["pxap"] == curve.average_precision()
    assert list(result) == ["error", "f1_foreground", "f1_background", "pxap", "mask_area"]


def test_scores_of_an_image():
    meter = LocalizationMeter(threshold=0.7)
    mask = np.array([[0.9, 0.7], [0.69, 0.0]])
    assert meter.update(mask, mask_of("#. ..")) == (2 / 3, 4 / 5)


def test_meter_without_masks():
    meter = LocalizationMeter()
    for correct in (True, False, np.True_, np.False_, np.False_):
        assert meter.update(np.full((2, 2), 0.25), correct=correct) is None
    assert meter.compute() == {"error": 3 / 5, "mask_area": 0.25}


def test_empty_meter():
    assert LocalizationMeter().compute() == {"error": 0.0, "mask_area": 0.0}
