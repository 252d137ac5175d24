"""Training transforms: sizes, values, determinism, and that image and mask go through the same geometry."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from minmax_entropy.data import AUGMENTATIONS, TrainingTransform
from minmax_entropy.data.loading import random_state

BILINEAR = Image.Resampling.BILINEAR
HALF = (0.5, 0.5, 0.5)
SIZES = [(48, 48), (48, 64), (64, 32)]


def gradient(height, width):
    """Red rises with the column, green with the row: a pixel says where it comes from."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(pixels)


def marked(height, width):
    """A red object on blue, and its mask."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 8 : height // 2, width // 4 : width // 2] = True
    pixels = np.where(mask[..., None], np.uint8([220, 30, 30]), np.uint8([30, 30, 220]))
    return Image.fromarray(pixels), mask


def apply(augmentation, size, *inputs, seed=0, mean=HALF, std=HALF):
    transform = TrainingTransform(augmentation, size, mean, std)
    with random_state(seed):
        return transform(*inputs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_sizes(augmentation, size):
    """Of any image, strips of pixels included; plain tensors come out, in the range of the normalization."""
    for shape in ((40, 90), (90, 40), (16, 16), (1, 300), (300, 1), (1, 1)):
        image = apply(augmentation, size, gradient(*shape))
        assert type(image) is torch.Tensor and image.dtype == torch.float32 and image.shape == (3, *size)
        assert -1 <= image.min() <= image.max() <= 1
        both, mask = apply(augmentation, size, gradient(*shape), np.ones(shape, dtype=bool))
        assert both.equal(image)
        assert type(mask) is torch.Tensor and mask.dtype == torch.bool and mask.shape == size and mask.all()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_image_and_mask_move_together(augmentation):
    """The object is red wherever the mask says so, and nowhere else, borders aside."""
    seen = set()
    for seed in range(12):
        image, mask = apply(augmentation, (48, 64), *marked(60, 80), seed=seed)
        red = image[0] > image[2]
        assert (red != mask).float().mean() < 0.03
        assert 0.02 < mask.float().mean() < 0.7
        seen.add(mask.numpy().tobytes())
    assert len(seen) >= {"none": 1, "flip": 2}.get(augmentation, 6)
    assert len(seen) <= {"none": 1, "flip": 2}.get(augmentation, 12)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_determinism(augmentation):
    image = gradient(60, 80)
    first = apply(augmentation, 48, image, seed=3)
    assert apply(augmentation, 48, image, seed=3).equal(first)
    others = [apply(augmentation, 48, image, seed=seed).equal(first) for seed in range(4, 10)]
    assert all(others) if augmentation == "none" else not all(others)


def test_values():
    """Without augmentation, at its own size: (pixel / 255 - mean) / std."""
    image = gradient(48, 64)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (np.asarray(image) / 255 - mean) / std
    found = apply("none", (48, 64), image, mean=mean, std=std)
    np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=1e-6)


def test_flip_reverses_the_columns():
    image = gradient(48, 64)
    plain = apply("none", (48, 64), image)
    found = [apply("flip", (48, 64), image, seed=seed) for seed in range(8)]
    flipped = [each.equal(plain.flip(-1)) for each in found]
    assert 0 < sum(flipped) < 8 and all(each.equal(plain) or each.equal(plain.flip(-1)) for each in found)


def test_greyscale():
    """ITU-R 601-2 luma, as Pillow's "L"; the mask comes along."""
    image, mask = marked(32, 32)
    found, moved = apply("none", 32, image, mask, mean=(0.5,), std=(0.25,))
    expected = (np.asarray(image.convert("L")) / 255 - 0.5) / 0.25
    assert found.shape == (1, 32, 32)
    np.testing.assert_allclose(found[0], expected, atol=0.02)
    assert (moved.numpy() == mask).all()


@pytest.mark.parametrize(("augmentation", "flips"), [("paper", [(-1,)]), ("glas", [(-1,), (-2,), (-1, -2)])])
def test_paper_crops(augmentation, flips):
    """Crops of 96 % of the smaller side, not resized any further; which flips there are."""
    image = gradient(100, 150)  # the smaller side is 100 for crops of 96
    found = set()
    for seed in range(40):
        crop = apply(v2.Compose(_geometry(augmentation)), 96, image, seed=seed)
        columns, rows = crop[0].mean(dim=0).diff(), crop[1].mean(dim=1).diff()
        found.add((bool(columns.mean() < 0), bool(rows.mean() < 0)))
        if augmentation == "paper":  # no border in it, at one scale
            step = 2 / 149
            assert abs(columns.abs().mean() - step) < 0.05 * step and abs(rows.abs().mean() - 2 / 99) < 0.001
    expected = {(False, False)} | {(-1 in flip, -2 in flip) for flip in flips}
    assert found == expected


def _geometry(augmentation):
    return [step for step in AUGMENTATIONS[augmentation]((96, 96), BILINEAR) if not isinstance(step, v2.ColorJitter)]


def test_reflection():
    """A crop that is larger than the image continues it as a mirror would: of 0 1 2 3 comes 2 1 0 1 2 3 2 1."""
    steps = [step for step in AUGMENTATIONS["glas"]((64, 64), BILINEAR) if isinstance(step, v2.RandomCrop)]
    image = gradient(64, 64)
    mirrored = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    mask = np.zeros((64, 64), dtype=bool)
    mask[:3, :5] = True
    padded = np.pad(mask, 4, mode="reflect")
    corners = set()
    for seed in range(10):
        crop, moved = apply(steps[0], 64, image, mask, seed=seed)
        crop = ((crop + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        places = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if (crop == mirrored[top : top + 64, left : left + 64]).all()
        ]
        assert len(places) == 1
        top, left = places[0]
        assert (moved.numpy() == padded[top : top + 64, left : left + 64]).all()
        corners.update(places)
    assert len(corners) > 5


def test_crop_takes_a_part():
    """40 to 100 % of the area: the range of the gradients says how much."""
    shares = []
    for seed in range(30):
        image = apply(AUGMENTATIONS["crop"]((64, 64), BILINEAR)[0], 64, gradient(128, 128), seed=seed)
        extent = [float(channel.max() - channel.min()) / 2 for channel in image[:2]]
        shares.append(extent[0] * extent[1])
        assert 0.7 < extent[0] / extent[1] < 1.4
    assert 0.35 < min(shares) < 0.6 and 0.8 < max(shares) <= 1


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_interpolation(augmentation):
    """That which is asked for, bilinear by default; the mask does not change with it."""
    image, mask = marked(90, 90)
    found = {}
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        with random_state(3):
            found[interpolation], moved = TrainingTransform(augmentation, 64, HALF, HALF, interpolation)(image, mask)
        default, moved_by_default = apply(augmentation, 64, image, mask, seed=3)
        assert torch.equal(found[interpolation], default) == (interpolation == "bilinear")
        assert torch.equal(moved, moved_by_default)
    assert not torch.equal(found["bicubic"], found["lanczos"])
    if augmentation == "none":
        pixels = ((found["bicubic"] + 1) * 127.5).round().byte().permute(1, 2, 0)
        assert np.array_equal(pixels, np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("padding", [3, [3], [3, 2], [3, 2, 1, 0]], ids=str)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "symmetric"])
def test_padding_of_an_augmentation_of_ones_own(mode, padding):
    """The mask of a strip is padded as the image is."""
    image, mask = marked(2, 40)
    found, moved = apply(v2.Pad(padding, padding_mode=mode), 32, image, mask)
    assert moved.shape == found.shape[1:] != mask.shape
    assert ((found[0] > found[2]) == moved).all() and moved.any()


def test_own_augmentation():
    transform = TrainingTransform(v2.CenterCrop(32), 32, HALF, HALF)
    pixels = np.asarray(gradient(64, 64))[16:48, 16:48]
    np.testing.assert_allclose(transform(gradient(64, 64)).permute(1, 2, 0), pixels / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("augmentation", "mean", "message"),
    [
        ("crops", HALF, "crops.*crop"),
        ("crop", (0.5, 0.5), "an image gives 3 channels or 1, the model takes 2"),
        ("crop", (0.5,) * 4, "an image gives 3 channels or 1, the model takes 4"),
    ],
)
def test_bad_options(augmentation, mean, message):
    with pytest.raises(ValueError, match=message):
        TrainingTransform(augmentation, 32, mean, mean)
