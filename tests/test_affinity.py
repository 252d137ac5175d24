"""Refinement of maps by the colours of the image: against a computation pixel by pixel, and in the model."""

import math

import pytest
import torch

import minmax_entropy as mme
from minmax_entropy.benchmark.grad_cam import GradCAM
from minmax_entropy.data import Preprocess, SyntheticShapes
from minmax_entropy.inference.refinement import AffinityRefinement
from minmax_entropy.inference.tiles import see_tiled, why_not_tiled
from minmax_entropy.inference.views import Views
from minmax_entropy.mask import min_max_normalize, resize, soft_mask

OPTIONS = dict(iterations=3, dilations=(1, 3), temperature=0.2, scale=2)


def create(**keywords):
    torch.manual_seed(0)
    return mme.create_model("wsl_test_resnet", num_classes=3, **{"preset": "area", "out_index": 1, **keywords})


def refined_by_hand(maps, image, iterations, dilations, temperature):
    """Pixel by pixel in Python: `maps` `[H][W]`, `image` `[C][H][W]`."""
    height, width = len(maps), len(maps[0])
    steps = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]

    def at(picture, y, x):
        return picture[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    def weights(y, x):
        likeness = []
        for dy, dx in steps:
            total = 0.0
            for channel in image:
                values = [at(channel, y + b, x + a) for b, a in steps] + [at(channel, y, x)]
                mean = sum(values) / len(values)
                std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
                total -= abs(at(channel, y + dy, x + dx) - at(channel, y, x)) / (temperature * (std + 1e-6))
            likeness.append(math.exp(total / len(image)))
        return [value / sum(likeness) for value in likeness]

    own = {(y, x): weights(y, x) for y in range(height) for x in range(width)}
    for _ in range(iterations):
        maps = [
            [sum(w * at(maps, y + b, x + a) for w, (b, a) in zip(own[y, x], steps, strict=True)) for x in range(width)]
            for y in range(height)
        ]
    return maps


def test_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    image, maps = torch.randn(1, 2, 7, 6, generator=generator), torch.randn(1, 1, 7, 6, generator=generator)
    found = AffinityRefinement(**{**OPTIONS, "scale": 1})(maps, image)
    expected = refined_by_hand(maps[0, 0].tolist(), image[0].tolist(), 3, (1, 3), 0.2)
    torch.testing.assert_close(found[0, 0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_each_image_and_map_by_itself():
    generator = torch.Generator().manual_seed(1)
    images, maps = torch.randn(2, 3, 12, 16, generator=generator), torch.randn(2, 4, 6, 8, generator=generator)
    refine = AffinityRefinement(**OPTIONS)
    found = refine(maps, images)
    assert found.shape == (2, 4, 12, 16)
    for image in range(2):
        for number in range(4):
            alone = refine(maps[image : image + 1, number : number + 1], images[image : image + 1])
            torch.testing.assert_close(alone[0, 0], found[image, number])
    # Neither the map's scale and offset nor the image's matter.
    torch.testing.assert_close(refine(3 * maps + 1, 5 * images - 2), 3 * found + 1, rtol=1e-4, atol=1e-4)


def test_compression():
    """The logarithm of the map on both sides of 0; the order of values stays, and so does a map of one value."""
    generator = torch.Generator().manual_seed(2)
    image, maps = torch.randn(1, 3, 12, 16, generator=generator), 20 * torch.randn(1, 2, 6, 8, generator=generator)
    plain, compressed = AffinityRefinement(**OPTIONS), AffinityRefinement(**OPTIONS, compression=0.4)
    by_hand = [math.copysign(math.log(1 + 0.4 * abs(value)), value) for value in maps.flatten().tolist()]
    expected = plain(torch.tensor(by_hand).reshape(maps.shape), image)
    torch.testing.assert_close(compressed(maps, image), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compressed(maps / 1e6, image) * 1e6, 0.4 * plain(maps, image), rtol=1e-3, atol=1e-4)
    for value in (0.0, -3.0):
        found = compressed(torch.full((1, 1, 6, 8), value), image)
        assert found.isfinite().all() and found.std() < 1e-6


@pytest.mark.parametrize(
    ("scale", "shape", "expected"),
    [(1, (5, 4), (5, 4)), (4, (5, 4), (20, 16)), (4, (24, 20), (64, 48)), (100, (5, 4), (64, 48))],
)
def test_size(scale, shape, expected):
    refine = AffinityRefinement(iterations=1, scale=scale)
    assert refine(torch.rand(1, 1, *shape), torch.rand(1, 3, 64, 48)).shape[-2:] == expected


def test_a_coarse_map_finds_the_edges():
    """A bright disc, marked by a square that is too small and off the centre, both ways of brightness."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (y - 30) ** 2 + (x - 34) ** 2 < 18**2
    noise = 0.05 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for bright in (1.0, -1.0):
        image = bright * disc.float() + noise
        maps = torch.zeros(1, 1, 8, 8)
        maps[..., 2:4, 3:5] = 1.0

        def overlap(region, disc=disc):
            marked = min_max_normalize(resize(region, (64, 64)))[0, 0] > 0.4
            return float((marked & disc).sum() / (marked | disc).sum())

        before, after = overlap(maps), overlap(AffinityRefinement(iterations=20, scale=8)(maps, image))
        assert before < 0.7 and after > 0.9


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 7.0)])
def test_an_image_of_one_colour(image):
    """All neighbours count alike; gradients are finite."""
    maps = torch.rand(1, 1, 4, 4, requires_grad=True)
    found = AffinityRefinement()(maps, image)
    found.square().sum().backward()
    assert found.isfinite().all() and maps.grad.isfinite().all() and maps.grad.abs().sum() > 0
    weights = AffinityRefinement().weights(image)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 32))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(iterations=0), ValueError, "iterations must be an integer of 1 or more, got 0"),
        (dict(iterations=10**9), ValueError, "at most 1000 iterations"),
        (dict(dilations=()), ValueError, "dilations must be a list of 1 to 16"),
        (dict(dilations=(1, 0)), ValueError, "dilations must be an integer of 1 or more, got 0"),
        (dict(dilations=(1, 10**6)), ValueError, "dilations up to 1024"),
        (dict(temperature=0.0), ValueError, "temperature must be over 0"),
        (dict(scale=0), ValueError, "scale must be an integer of 1 or more"),
        (dict(sigma=1.5), ValueError, "sigma is a threshold"),
        (dict(compression=-0.1), ValueError, "compression must be 0 or more, got -0.1"),
        (dict(compression="much"), ValueError, "compression must be a finite number"),
        (dict(steps=3), TypeError, "its options are .*iterations"),
        ("pamr", TypeError, "mask_refinement must be a dictionary of options or None, got 'pamr'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        create(mask_refinement=options)


# In the model


def test_evaluation_is_refined_and_training_is_not():
    images, target = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    plain, refined = create(), create(mask_refinement=dict(OPTIONS, sigma=0.4))
    torch.testing.assert_close(refined(images, target).loss, plain(images, target).loss)
    plain.eval(), refined.eval()
    output, expected = refined(images), plain(images)
    assert not output.mask.allclose(expected.mask, atol=0.05)
    weights = expected.localizer_logits.softmax(dim=1)[:, :, None, None]
    region = refined.refinement((weights * expected.localizer_maps).sum(dim=1, keepdim=True), images)
    mask = soft_mask(min_max_normalize(resize(region, (64, 64))), 0.4, 8.0)
    torch.testing.assert_close(output.mask, mask)
    torch.testing.assert_close(output.localizer_logits, expected.localizer_logits)
    masks = refined.localize(images, classes="all").mask
    assert masks.shape == (2, 3, 64, 64)
    best = expected.localizer_maps[:, 1:2]
    torch.testing.assert_close(
        masks[:, 1:2], soft_mask(min_max_normalize(resize(refined.refinement(best, images), (64, 64))), 0.4, 8.0)
    )


def test_it_is_saved_and_may_be_set(tmp_path):
    model = create()
    images = torch.randn(1, 3, 64, 64)
    model.mask_refinement = OPTIONS
    mask = model.eval()(images).mask
    again = mme.create_model(f"local-dir:{model.save_pretrained(tmp_path / 'model')}").eval()
    assert again.mask_refinement == model.mask_refinement == {**OPTIONS, "sigma": None, "compression": 0.0}
    torch.testing.assert_close(again(images).mask, mask)
    again.mask_refinement = None
    assert again.refinement is None and not again(images).mask.equal(mask)
    # Every option is written, so that another default later changes no model; one without compression has none.
    assert create(mask_refinement={}).settings()["mask_refinement"] == AffinityRefinement().options
    assert create(mask_refinement=OPTIONS).mask_refinement["compression"] == 0


def test_a_limit_on_the_enlargement(monkeypatch):
    """Whole and by tiles: a map is enlarged as far as it may, and is never made smaller."""
    maps, images = torch.rand(1, 1, 10, 20), torch.rand(1, 3, 80, 160)
    for limit, expected in ((2**20, (40, 80)), (2000, (30, 60)), (10, (10, 20))):
        monkeypatch.setattr("minmax_entropy.inference.refinement.MAX_POSITIONS", limit)
        assert AffinityRefinement(iterations=1)(maps, images).shape[-2:] == expected


@pytest.mark.parametrize("decision", ["classifier", "localizer"])
def test_tiles(decision):
    """The whole image as one tile gives what the model gives."""
    model = create(mask_refinement=dict(OPTIONS, sigma=0.4, compression=0.4), decision=decision).eval()
    preprocess = Preprocess(mean=model.data_config["mean"], std=model.data_config["std"], multiple=32)
    picture = SyntheticShapes(length=1, size=96)[0].image
    with torch.inference_mode():
        output = model(preprocess(picture)[None])
        (scores,), mask = see_tiled(model, picture, preprocess, Views(), tile=96)
    assert (torch.from_numpy(mask) - output.mask[0, 0]).abs().mean() < 0.01
    torch.testing.assert_close(scores, output.logits, rtol=0.002, atol=0.002)


def test_a_classifier_that_does_not_decide_is_no_obstacle_to_tiles():
    model = create(preset="refined", classifier_scale=(64, 64))
    assert why_not_tiled(model) is None
    model.decision = "classifier"
    assert "classifier_scale" in why_not_tiled(model)


def test_grad_cam_is_refined():
    """At the size of the features, as a class activation map is: LayerCAM of an average is that of positive weights."""
    model = create(preset="cam").eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layer_cam = GradCAM(model, "layer_cam")
    plain = layer_cam(images).mask
    model.mask_refinement = dict(iterations=10, dilations=(1, 2), scale=1, sigma=0.4)
    refined = layer_cam(images).mask
    assert refined.shape == plain.shape and (refined - plain).abs().max() > 0.1

    features = model.forward_features(images)
    weight = next(parameter for parameter in model.localizer.parameters() if parameter.ndim == 4)
    maps = torch.einsum("kd,bdhw->bkhw", weight.flatten(1).clamp(min=0), features)
    best = int(model.localize(images).localizer_logits.argmax())
    region = resize(model.refinement(maps[:, best : best + 1], images), (64, 64))
    expected = soft_mask(min_max_normalize(region), 0.4, model.mask_omega)
    torch.testing.assert_close(refined, expected, rtol=0, atol=0.1)
    assert (refined - expected).abs().mean() < 0.02


def test_double_precision_stays():
    assert AffinityRefinement()(torch.rand(1, 1, 2, 2).double(), torch.rand(1, 3, 8, 8).double()).dtype == torch.float64
    assert AffinityRefinement()(torch.rand(1, 1, 2, 2).half(), torch.rand(1, 3, 8, 8).half()).dtype == torch.float32
