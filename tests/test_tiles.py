"""Large images: masks in bands, tiles that add up to the whole, limits on files, and pictures of any size."""

import dataclasses
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import minmax_entropy as mme
from minmax_entropy import _bands as bands
from minmax_entropy._bands import RegionMask, resized_rows, row_bands
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.data import DamagedFileError, ImageFiles, Preprocess, Record, read_image
from minmax_entropy.engine import Inference, allow_pixels, evaluate, predict_images, preprocess_for
from minmax_entropy.inference import tiles
from minmax_entropy.inference.files import predict_files
from minmax_entropy.mask import min_max_normalize, resize, soft_mask
from minmax_entropy.metrics import dice
from minmax_entropy.report.pictures import mask_picture, overlay, reduced


class Patches(nn.Module):
    """Features of patches of 4 x 4 pixels, each by itself: tiles see just what the whole image sees."""

    num_features, reduction = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU(), nn.Conv2d(6, 6, 1))

    def forward(self, images):
        return self.layers(images)


def create(**keywords):
    torch.manual_seed(3)
    model = mme.WSLModel(
        Patches(), **{"preset": "paper", "num_classes": 3, "data_config": dict(input_size=(3, 48, 48)), **keywords}
    )
    return model.eval()


def picture(height, width, seed=0):
    """Smooth noise, so that masks have regions."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def predict(model, image, *arguments, **keywords):
    (prediction,) = predict_images(model, [(7, image)], *arguments, **keywords)
    assert prediction.index == 7 and prediction.class_index == prediction.probabilities.argmax()
    assert prediction.probability == pytest.approx(prediction.probabilities.max())
    return prediction


# Bands


def test_row_bands(monkeypatch):
    monkeypatch.setattr(bands, "BAND_PIXELS", 100)
    assert list(row_bands(25, 10)) == [slice(0, 10), slice(10, 20), slice(20, 25)]
    assert list(row_bands(2, 1000)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (9, 4)])
@pytest.mark.parametrize("size", [(23, 31), (4, 3), (1, 5), (9, 4)])
def test_resized_rows_are_those_of_the_whole(shape, size):
    maps = torch.randn(2, *shape, dtype=torch.float64)  # in single precision torch rounds the rows' positions
    whole = F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]
    for start in range(size[0]):
        rows = slice(start, min(start + 3, size[0]))
        assert torch.allclose(resized_rows(maps, size, rows), whole[:, rows], atol=1e-12)


@pytest.mark.parametrize("size", [(33, 47), (20, 90), (100, 13)])
def test_region_mask_equals_an_ordinary_mask(monkeypatch, size):
    """Padding, both resizes, the range over the padded input, and a band's rows from no more than they need."""
    monkeypatch.setattr(bands, "BAND_PIXELS", 200)
    preprocess = Preprocess((0.5,), (0.5,), short_side=40, multiple=16)
    network = preprocess(Image.new("L", size[::-1])).shape[1:]
    region = torch.randn(5, 6)
    expected = soft_mask(min_max_normalize(resize(region[None, None], network)), 0.4, 6.0)
    expected = preprocess.restore(expected[0], size)[0].numpy()
    inner = tuple(slice(p, p + n) for p, n in zip(*pads_of(preprocess, size), strict=True))
    mask = RegionMask(region, tuple(network), inner, size, 0.4, 6.0)
    parts = list(mask.bands())
    assert len(parts) > 3 and np.concatenate([values for _, values in parts]) == pytest.approx(expected, abs=1e-5)
    assert [row for rows, _ in parts for row in range(rows.start, rows.stop)] == list(range(size[0]))


def pads_of(preprocess, size):
    """First row and column of the image in the network's input, and its size there, by a marked image."""
    ratio = preprocess.short_side / min(size)
    inner = [max(round(side * ratio), 1) for side in size]
    return [(-side % preprocess.multiple) // 2 for side in inner], inner


def test_region_mask_of_a_flat_map():
    mask = RegionMask(torch.full((3, 3), 2.0), (12, 12), (slice(0, 12), slice(0, 12)), (8, 8), 0.5, 8.0)
    ((_, values),) = mask.bands()
    assert values == pytest.approx(1 / (1 + math.exp(4.0)))


# Tiles


@pytest.mark.parametrize("length", [16, 17, 40, 64, 100, 129])
@pytest.mark.parametrize(("overlap", "unit"), [(4, 4), (8, 4), (8, 8)])
def test_tiles_cover_everything_and_overlap(length, overlap, unit):
    starts = tiles._starts(length, 16, overlap, unit)
    covered = {pixel for start in starts for pixel in range(start, start + 16)}
    assert covered == set(range(max(length, 16))) and starts == sorted(set(starts))
    assert all(second - first <= 16 - overlap for first, second in itertools.pairwise(starts))
    assert all(start % unit == 0 for start in starts[:-1])


@pytest.mark.parametrize("size", [(30, 41), (57, 100), (48, 48)])
def test_tiles_of_the_input_are_parts_of_it(size):
    model, image = create(), picture(*size)
    preprocess = dataclasses.replace(preprocess_for(model, 45), interpolation="bicubic")
    whole = preprocess(image)
    source = tiles.TiledImage(image, preprocess, model)
    assert source.size == tuple(whole.shape[1:])
    for top, left in ((0, 0), (4, 8), (source.size[0] - 16, source.size[1] - 16)):
        assert torch.equal(source.tile(top, left, (16, 16)), whole[:, top : top + 16, left : left + 16])


@pytest.mark.parametrize(
    "keywords",
    [
        dict(localizer=dict(name="wildcat", kmax=0.2, kmin=0.1, alpha=0.5), classifier="max"),
        dict(localizer="average", classifier="average", mask_sigma=0.3, mask_source="predicted"),
        dict(localizer="max", classifier="lse", shared_backbone=False),
        dict(preset="cam"),
        dict(preset="reference", classifier_scale=1.0),
    ],
    ids=["wildcat", "average", "max", "cam", "reference"],
)
@pytest.mark.parametrize("size", [(90, 130), (71, 50)])
def test_tiles_add_up_to_the_whole(keywords, size):
    """Where no position sees beyond its patch, tiles change nothing: scores, mask and class are those of the whole."""
    model, image = create(**{"classifier_scale": 1.0, **keywords}), picture(*size)
    preprocess = preprocess_for(model, 64)
    whole = predict(model, image, preprocess)
    for tile, overlap in ((24, None), (32, 12)):
        tiled = predict(model, image, preprocess, inference=Inference(tile, overlap))
        assert tiled.probabilities == pytest.approx(whole.probabilities, abs=1e-5)
        assert tiled.mask.shape == size and tiled.mask == pytest.approx(whole.mask, abs=1e-4)
        assert tiled.mask.dtype == np.float32 and np.ptp(tiled.mask) > 0.3


def test_classifier_at_half_the_scale():
    """Its pictures are resized tile by tile: close, and not the same."""
    model, image = create(localizer="average", classifier="average"), picture(100, 140)
    preprocess = preprocess_for(model, 96)
    whole = predict(model, image, preprocess)
    tiled = predict(model, image, preprocess, inference=Inference(48, 16))
    assert tiled.mask == pytest.approx(whole.mask, abs=1e-4)
    assert tiled.probabilities == pytest.approx(whole.probabilities, abs=0.01)


def test_positions_near_the_edge_of_a_tile_do_not_count():
    """A layer with padding is wrong at the edge of a tile; a wide enough overlap makes it good."""
    model = create(localizer="average", preset="cam")
    model.backbone.net.layers[2] = nn.Conv2d(6, 6, 3, padding=1)
    image, preprocess = picture(64, 160), preprocess_for(model, 64)
    whole = predict(model, image, preprocess).mask
    narrow, wide = (
        np.abs(predict(model, image, preprocess, inference=Inference(64, overlap)).mask - whole).max()
        for overlap in (4, 32)
    )
    assert wide < 0.01 < 0.02 < narrow


def test_no_pass_sees_more_than_a_batch_of_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "MAX_WHOLE", 3 * 32 * 32)
    model, seen = create(), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    predict(model, picture(200, 300), preprocess_for(model, 200), inference=Inference(32))
    assert set(seen) <= {(n, 3, side, side) for n in (1, 2, 3) for side in (16, 32)} and len(seen) > 50


def test_large_inputs_go_by_tiles_by_themselves(monkeypatch):
    model, image = create(), picture(60, 80)
    attention = create(localizer="attention")
    preprocess = preprocess_for(model, 64)
    whole = [predict(each, image, preprocess).mask for each in (model, attention)]
    monkeypatch.setattr(tiles, "MAX_WHOLE", 64 * 80)
    monkeypatch.setattr(tiles, "TILE", 32)
    calls = []
    real = tiles.Tiling
    monkeypatch.setattr(tiles, "Tiling", lambda *arguments: calls.append(arguments) or real(*arguments))
    predict(model, picture(60, 60), preprocess)
    assert not calls
    assert predict(model, image, preprocess).mask == pytest.approx(whole[0], abs=1e-4) and len(calls) == 1
    assert np.array_equal(predict(attention, image, preprocess).mask, whole[1]) and len(calls) == 1


def test_ordinary_images_are_untouched():
    """Bit by bit what the model's forward gives, also where a tile is asked for that the image does not exceed."""
    model, image = create(), picture(50, 70)
    preprocess = preprocess_for(model)
    with torch.no_grad():
        output = model(preprocess(image)[None])
    for inference in (None, Inference(tile=128)):
        prediction = predict(model, image, preprocess, inference=inference)
        assert np.array_equal(prediction.mask, preprocess.restore(output.mask[0], (50, 70))[0].numpy())
        assert np.array_equal(prediction.probabilities, output.logits.softmax(dim=1)[0].numpy())


def test_order_among_images_of_various_sizes():
    model = create()
    images = [picture(*size, seed) for seed, size in enumerate([(48, 48), (48, 48), (48, 200), (48, 48), (300, 48)])]
    given = list(predict_images(model, enumerate(images), inference=Inference(tile=48)))
    assert [prediction.index for prediction in given] == list(range(5))
    for prediction, image in zip(given, images, strict=True):
        assert prediction.mask.shape == (image.height, image.width)
        alone = predict(model, image, inference=Inference(tile=48))
        assert prediction.mask == pytest.approx(alone.mask, abs=1e-5)


def test_backbone_of_one_size():
    """Its tiles have that size; the image keeps its aspect ratio, and is padded where it is smaller."""
    model = create(localizer="average", classifier="average")
    model.backbone.sizes = ImageSizes(4, fixed=(64, 64))
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[1:])))
    for size, side in (((64, 150), 64), ((90, 90), 128), ((50, 50), 40)):
        prediction = predict(model, picture(*size), preprocess_for(model, side), inference=Inference(tile=64))
        assert prediction.mask.shape == size
    assert set(seen) == {(3, 64, 64)}
    with pytest.raises(ValueError, match="takes images of 64 x 64 only, which is the size of its tiles, got 32"):
        predict(model, picture(64, 64), inference=Inference(tile=32))
    with pytest.raises(ValueError, match="give a tile of that size to see images at other scales"):
        predict(model, picture(64, 64), inference=Inference(scales=(0.5, 1.0)))


@pytest.mark.parametrize(
    ("keywords", "inference", "message"),
    [
        (dict(localizer="attention"), dict(tile=32), "can't work by tiles: .* AttentionHead does not"),
        (dict(classifier_scale=(24, 24)), dict(tile=32), r"a share of the image, it is \(24, 24\)"),
        ({}, dict(tile=30), "tiles of this backbone are multiples of 4 pixels, got 30; try 32"),
        ({}, dict(tile=32, overlap=2), r"is 4 \(one position of the features\) to 16 pixels, got 2"),
        ({}, dict(tile=32, overlap=20), "to 16 pixels, got 20"),
    ],
)
def test_tiles_that_can_not_be(keywords, inference, message):
    with pytest.raises(ValueError, match=message):
        predict(create(**keywords), picture(100, 100), inference=Inference(**inference))


def test_bad_settings_of_the_inference():
    for keywords, message in [
        (dict(tile=0), "tile is a number of pixels, 1 or more, got 0"),
        (dict(overlap=-1), "overlap is a number of pixels"),
        (dict(flips=("diagonal",)), r"flips are any of \('horizontal', 'vertical', 'both'\), got 'diagonal'"),
        (dict(scales=()), "scales are numbers over 0"),
        (dict(scales=(1.0, 0.0)), "scales are numbers over 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Inference(**keywords)


def test_stitched_maps_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(tiles, "MAX_MAP_BYTES", 4 * 3 * 16 * 16 - 1)
    with pytest.raises(
        ValueError, match=r"the class maps of the whole image, \[3, 16, 16\], would take .* smaller size"
    ):
        predict(create(), picture(64, 64), preprocess_for(create(), 64), inference=Inference(32))


def test_maps_that_leave_a_gap():
    """Convolutions without padding give fewer positions than the tile has room for."""
    model = create(preset="cam")
    model.backbone.net.layers[2] = nn.Conv2d(6, 6, 3)
    with pytest.raises(ValueError, match="leave a gap: give them a larger overlap"):
        predict(model, picture(64, 64), preprocess_for(model, 64), inference=Inference(32, 4))


# Evaluation and files


def make_files(folder, sizes):
    records = []
    for index, size in enumerate(sizes):
        mask = np.random.default_rng(index).random((size[0] // 10 + 1, size[1] // 10 + 1)) < 0.4
        picture(*size, index).save(folder / f"{index}.png")
        Image.fromarray(mask).resize(size[::-1]).save(folder / f"{index}_m.png")
        records.append(Record(folder / f"{index}.png", folder / f"{index}_m.png", "ab"[index % 2]))
    return ImageFiles(records)


def test_evaluation_by_tiles(tmp_path):
    model, data = create(num_classes=2), make_files(tmp_path, [(60, 90), (48, 48)])
    whole, tiled = (evaluate(model, data, inference=inference) for inference in (None, Inference(tile=32)))
    for key, value in whole.metrics.items():
        assert tiled.metrics[key] == pytest.approx(value, abs=0.01)
    masks = [predict(model, data.image(index), inference=Inference(tile=32)).mask for index in (0, 1)]
    expected = np.mean([dice(mask >= 0.5, data.mask(index)) for index, mask in enumerate(masks)])
    assert tiled.metrics["f1_foreground"] == pytest.approx(expected)


def test_figures_of_very_large_images_are_sampled(tmp_path, monkeypatch):
    """Every third row and column: 1/9 of the pixels are left, and the figures are close."""
    model, data = create(num_classes=2), make_files(tmp_path, [(300, 240)])
    exact = evaluate(model, data)
    mask = predict(model, data.image(0)).mask
    monkeypatch.setattr(sys.modules["minmax_entropy.engine.evaluate"], "MAX_SCORED", 8000)
    sampled = evaluate(model, data)
    expected = dice(mask[::3, ::3] >= 0.5, data.mask(0)[::3, ::3])
    assert sampled.rows[0]["f1_foreground"] == expected != exact.rows[0]["f1_foreground"]
    assert sampled.rows[0]["f1_foreground"] == pytest.approx(exact.rows[0]["f1_foreground"], abs=0.03)


def test_files_of_more_pixels_are_refused_by_number(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (90, 100)).save(path)
    limit = Image.MAX_IMAGE_PIXELS
    for allowed in (None, 9000, 20000):
        with allow_pixels(allowed):
            assert read_image(path).size == (90, 100)
    with pytest.raises(DamagedFileError, match=r"large.png .*: it has more than 8,000 pixels; .* max_pixels"):
        with allow_pixels(8000):
            read_image(path)
    assert Image.MAX_IMAGE_PIXELS == limit
    (result,) = predict_files(mme.Predictor(create(), max_pixels=8000), [path])
    assert set(result) == {"image", "error"} and "--max-pixels" in result["error"]
    (result,) = predict_files(mme.Predictor(create(), max_pixels=9000), [path])
    assert "error" not in result
    with pytest.raises(ValueError, match="max_pixels must be 1 or more, got 0"), allow_pixels(0):
        pass


def test_predicted_files_by_tiles(tmp_path, monkeypatch):
    """A large image, in small: mask and overlay as files, boxes in the image's own pixels."""
    monkeypatch.setattr(mme.inference.prediction, "OVERLAY_SIDE", 100)
    monkeypatch.setattr(bands, "BAND_PIXELS", 1000)
    path, model = tmp_path / "large.png", create(mask_threshold=0.4)
    picture(170, 230).save(path)
    preprocess, inference = preprocess_for(model, 128), Inference(tile=32, flips=("both",))
    predictor = mme.Predictor(model, mme.Views(flips=("both",)), size=128, tile=32)
    (result,) = predict_files(predictor, [path], tmp_path / "out")
    mask = predict(model, picture(170, 230), preprocess, inference=inference).mask >= 0.4
    assert np.array_equal(np.asarray(Image.open(result["mask"])), mask * np.uint8(255))
    assert Image.open(result["overlay"]).size == (100, 74) and 0 < mask.mean() < 1
    x0, y0, x1, y1 = np.array(result["boxes"]).T
    rows, columns = np.nonzero(mask)
    assert (min(y0), max(y1)) == (rows.min(), rows.max() + 1) and (min(x0), max(x1)) == (
        columns.min(),
        columns.max() + 1,
    )


# Pictures


@pytest.mark.parametrize("pixels", [1, 150, 10**6])
def test_pictures_in_bands(monkeypatch, pixels):
    """Whatever the bands, the pixels of a plain computation over the whole picture."""
    monkeypatch.setattr(bands, "BAND_PIXELS", pixels)
    image, mask = picture(23, 31), np.random.default_rng(0).random((23, 31)).astype(np.float32)
    values, inside = np.asarray(image, dtype=np.float32), mask >= 0.3
    expected = np.where(inside[..., None], values * 0.65 + np.float32([255, 60, 20]) * 0.35, values * 0.65)
    for row, column in np.argwhere(inside):
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        if any(0 <= y < 23 and 0 <= x < 31 and not inside[y, x] for y, x in around):
            expected[row, column] = 255, 230, 0
    assert np.array_equal(np.asarray(overlay(image, mask, 0.3)), expected.astype(np.uint8))
    assert np.array_equal(np.asarray(mask_picture(mask)), (mask * 255).round().astype(np.uint8))
    assert np.array_equal(np.asarray(mask_picture(mask, 0.3)), inside * np.uint8(255))


def test_reduced_pictures():
    image, mask = Image.new("RGB", (200, 100)), np.zeros((100, 200), dtype=bool)
    mask[:, 100:] = True
    small, smaller = reduced(image, mask, 50)
    assert small.size == (50, 25) and smaller.shape == (25, 50)
    assert not smaller[:, :25].any() and smaller[:, 25:].all()
    assert reduced(image, mask, 200)[0] is image
