"""Test-time views: images seen at several sizes and closer, of models, of Grad-CAM and by tiles; masks are means."""

import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.benchmark.grad_cam import GradCAM
from minmax_entropy.engine import Inference, predict_images, preprocess_for
from minmax_entropy.inference.filters import guided_filter, refine_mask
from minmax_entropy.inference.views import Views, recommended_views, see
from minmax_entropy.mask import min_max_normalize, resize, soft_mask, weighted_map

SCALES = (0.75, 1.0, 1.5)


def create(name="wsl_test_resnet", **keywords):
    torch.manual_seed(0)
    options = {
        "preset": "paper",
        "num_classes": 3,
        "img_size": 64,
        "out_index": 1,
        "localizer": "average",
        "classifier": "average",
    }
    return mme.create_model(name, **{**options, "decision": "localizer", **keywords})


def images_of(height=64, width=96, number=2):
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1))


def picture(height=96, width=128):
    """Smooth noise, so that masks have regions."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def seen(model, images, views=None):
    """Scores and mask in the views that the model recommends."""
    (scores,), mask = see(model, images, views or recommended_views(model))
    return scores, mask


def plain_mask(model, region, images):
    """The mask of a map, step by step."""
    if model.refinement is not None:
        region = model.refinement(region, images)
    normalized = min_max_normalize(resize(region, images.shape[-2:]))
    return soft_mask(normalized, model.evaluation_sigma(), model.mask_omega)


def enlarged(images, height, width):
    return torch.nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)


def predict(model, *pictures, **keywords):
    return list(predict_images(model, enumerate(pictures), inference=Inference(**keywords)))


def test_masks_are_the_means():
    model, images = create(evaluation_scales=SCALES).eval(), images_of()
    views = [
        model.class_maps(torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True))
        for size in ((48, 72), (64, 96), (96, 144))
    ]
    logits = sum(each for each, _ in views) / 3
    masks = [
        soft_mask(min_max_normalize(resize(weighted_map(maps, logits.softmax(dim=1)), (64, 96)))) for _, maps in views
    ]
    scores, mask = seen(model, images)
    assert torch.equal(scores, views[1][0])
    torch.testing.assert_close(mask, sum(masks) / 3)
    assert not torch.allclose(mask, masks[1], atol=1e-3)
    torch.testing.assert_close(seen(model, images, Views())[1], model(images).mask)


@pytest.mark.parametrize("decision", ["localizer", "classifier"])
def test_calls_of_the_model_are_one_pass(decision):
    """Whatever it recommends."""
    views = dict(evaluation_scales=SCALES, evaluation_flip=True, evaluation_zoom=dict(below=1.0))
    plain, found = (create(decision=decision, **keywords).eval() for keywords in ({}, views))
    passes = []
    found.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[-1]))
    for call in ("__call__", "localize"):
        expected, output = (getattr(model, call)(images_of()) for model in (plain, found))
        assert torch.equal(output.mask, expected.mask)
    assert passes == ([96, 96] if decision == "localizer" else [96, 48, 96])


def test_other_sizes_may_be_flipped():
    model, images = create(evaluation_scales=SCALES, mask_refinement={"iterations": 2}).eval(), images_of()
    scores, plain = seen(model, images)
    model.evaluation_flip = True
    again, mask = seen(model, images)
    assert torch.equal(again, scores) and (mask - plain).abs().max() > 0.01
    views = [model.class_maps(images)]
    for size in ((48, 72), (96, 144)):
        logits, maps = model.class_maps(enlarged(images.flip(-1), *size))
        views.append((logits, maps.flip(-1)))
    weights = (sum(logits for logits, _ in views) / 3).softmax(dim=1)
    expected = sum(plain_mask(model, weighted_map(maps, weights), images) for _, maps in views) / 3
    torch.testing.assert_close(mask, expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_every_scale_has_every_flip(mirror):
    model, images = create(mask_source="predicted").eval(), images_of()
    scores, mask = see(model, images, Views((1.0, 1.5), mirror, flips=("vertical", "both")))
    weights = torch.nn.functional.one_hot(scores[0].argmax(dim=1), 3).float()
    other = {(): (-1,), (-1,): (), (-2,): (-2, -1), (-2, -1): (-2,)} if mirror else {}
    expected = []
    for size in ((64, 96), (96, 144)):
        for axes in ((), (-2,), (-2, -1)):
            axes = axes if size == (64, 96) else other.get(axes, axes)
            maps = model.class_maps(enlarged(images, *size).flip(axes))[1].flip(axes)
            expected.append(plain_mask(model, weighted_map(maps, weights), images))
    torch.testing.assert_close(mask, sum(expected) / 6)
    assert len(scores) == 3
    torch.testing.assert_close(scores[1], model.class_maps(images.flip(-2))[0])


ZOOM = dict(scale=2.0, below=0.3, share=0.3)


def zoomed(**keywords):
    """A model whose masks of `images_of` are on both sides of `below`, and those it had without a closer look."""
    options = dict(evaluation_scales=SCALES, evaluation_flip=True, mask_sigma=0.6, mask_refinement={"iterations": 2})
    model = create(**options | keywords).eval()
    images = images_of(number=8)
    before = seen(model, images)[1].detach()
    below = float(before.mean(dim=(1, 2, 3)).median()) + 1e-4
    model.evaluation_zoom = dict(ZOOM, below=below)
    small = before.mean(dim=(1, 2, 3)) < below
    assert 0 < small.sum() < len(small)
    return model, images, before, small


@torch.no_grad()
def test_masks_that_mark_little_have_a_closer_look():
    model, images, before, small = zoomed()
    views = [model.class_maps(images)]
    views += [model.class_maps(enlarged(images.flip(-1), *size)) for size in ((48, 72), (96, 144))]
    weights = (sum(scores for scores, _ in views) / 3).softmax(dim=1)
    larger = enlarged(images.flip(-1), 128, 192)
    found = plain_mask(model, weighted_map(model.class_maps(larger)[1].flip(-1), weights), images)
    passes = []
    hook = model.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape))
    mask = seen(model, images)[1]
    expected = torch.where(small[:, None, None, None], 0.7 * before + 0.3 * found, before)
    torch.testing.assert_close(mask, expected)
    # No pass is of more pixels than the batch.
    assert passes[3:] == [(2, 3, 128, 192)] * (int(small.sum()) // 2) and (expected - before).abs().max() > 0.05
    hook.remove()
    alone = torch.cat([seen(model, image[None])[1] for image in images])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    model.evaluation_zoom = dict(ZOOM, below=1e-6)
    assert torch.equal(seen(model, images)[1], before)
    model.evaluation_zoom, model.evaluation_scales = dict(ZOOM, below=1.0), (1.0,)
    assert (model(images).mask - seen(model, images)[1]).abs().max() > 0.01
    model.backbone.sizes = ImageSizes(8, fixed=(64, 96))
    assert torch.equal(model(images).mask, seen(model, images)[1])


@torch.no_grad()
def test_a_closer_look_where_masks_depend_on_the_batch():
    """At all images, in one pass."""
    model, images, before, small = zoomed(mask_normalization="batch")
    passes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape))
    mask = seen(model, images)[1]
    assert passes[3:] == [(8, 3, 128, 192)]
    changed = (mask - before).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert torch.equal(changed, small)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_views_in_other_precision(dtype):
    model, images, *_ = zoomed()
    model.evaluation_zoom = dict(ZOOM, below=1.0)
    expected, tolerance = seen(model, images)[1], 0.1 if dtype is torch.bfloat16 else 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(seen(model, images)[1], expected, atol=0.1, rtol=0)
    found = seen(model.to(dtype), images.to(dtype))[1]
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(scale=1), ValueError, "scale must be over 1 and at most 4"),
        (dict(below=0), ValueError, "below must be over 0"),
        (dict(share=1.5), ValueError, "share must be over 0 and at most 1"),
        (dict(share="a"), ValueError, "finite number"),
        (dict(factor=2), TypeError, "its options are .*'scale', 'below', 'share'"),
        (2.0, TypeError, "evaluation_zoom must be a dictionary"),
    ],
)
def test_closer_looks_that_can_not_be(options, error, message):
    with pytest.raises(error, match=message):
        create(evaluation_zoom=options)


@torch.no_grad()
def test_the_map_of_the_predicted_class_is_that_of_the_answer():
    model = create(evaluation_scales=SCALES, mask_source="predicted").eval()
    images = images_of(number=16) * torch.linspace(0.2, 4, 16)[:, None, None, None]
    _, mask = seen(model, images)
    weights = torch.nn.functional.one_hot(model(images).logits.argmax(dim=1), 3).float()
    views = [model.class_maps(enlarged(images, *size))[1] for size in ((64, 96), (48, 72), (96, 144))]
    expected = sum(plain_mask(model, weighted_map(maps, weights), images) for maps in views) / 3
    torch.testing.assert_close(mask, expected)


def test_the_classifier_sees_the_region_of_all():
    model, image = create(evaluation_scales=SCALES, decision="classifier"), picture(64, 96)
    (found,) = predict(model.eval(), image)
    images = preprocess_for(model)(image)[None]
    expected = model.classify(images * seen(model, images)[1]).softmax(dim=1)[0].detach()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def test_training_is_the_same():
    target = torch.tensor([0, 2])
    usual, found = (
        create(preset="area", evaluation_scales=scales).train()(images_of(), target) for scales in ((1.0,), SCALES)
    )
    assert torch.equal(usual.mask, found.mask) and usual.losses == found.losses


@pytest.mark.parametrize(
    ("sizes", "scales", "expected"),
    [
        (ImageSizes(8), SCALES, [(64, 64), (48, 48), (96, 96)]),
        (ImageSizes(8, step=(32, 32)), (0.4, 1, 1.4), [(64, 64), (32, 32), (96, 96)]),
        (ImageSizes(64), SCALES, [(64, 64), (96, 96)]),  # 48 is too small: the image itself counts twice
        (ImageSizes(8), (1.001, 1, 2), [(64, 64), (128, 128)]),
        (ImageSizes(8, fixed=(64, 64)), SCALES, [(64, 64)]),
    ],
)
def test_sizes_that_the_backbone_takes(sizes, scales, expected):
    """The nearest; what comes out as the image itself counts, and takes no pass of its own."""
    model, passes = create(preset="refined", evaluation_scales=scales, evaluation_flip=False).eval(), []
    model.backbone.sizes = sizes
    model.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(tuple(inputs[0].shape[-2:])))
    assert seen(model, images_of(64, 64))[1].shape == (2, 1, 64, 64) and passes == expected
    passes.clear()
    model.evaluation_flip = True
    seen(model, images_of(64, 64))
    assert len(passes) == (1 if sizes.fixed else len(scales))  # one that is the image itself, flipped, is another image


def test_saved_with_the_model(tmp_path):
    model = create(evaluation_scales=[0.75, 1, 1.5], evaluation_flip=True, evaluation_zoom=dict(below=0.9)).eval()
    assert model.evaluation_scales == SCALES
    model.save_pretrained(tmp_path / "model")
    again = mme.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    assert again.evaluation_scales == SCALES and again.evaluation_flip and again.evaluation_zoom["below"] == 0.9
    assert torch.equal(seen(again, images_of())[1], seen(model, images_of())[1])
    assert create(evaluation_zoom={}).settings()["evaluation_zoom"] == dict(scale=2.0, below=0.135, share=0.4)
    again.evaluation_zoom = dict(below=0.2)
    assert again.settings()["evaluation_zoom"] == dict(scale=2.0, below=0.2, share=0.4)
    again.evaluation_scales, again.evaluation_flip = (1.0,), True
    assert again.settings()["evaluation_flip"] is True and create().evaluation_flip is False
    with pytest.raises(TypeError, match="evaluation_flip"):
        again.evaluation_flip = "yes"
    assert list(again.settings()["evaluation_scales"]) == [1.0]
    assert create().evaluation_scales == (1.0,)
    scales = [0.75, 1]
    model = create(evaluation_scales=scales)
    scales.append(3)
    assert list(model.settings()["evaluation_scales"]) == [0.75, 1]


@pytest.mark.parametrize(
    ("scales", "error", "message"),
    [
        ((0.75, 1.5), ValueError, "must have 1, the image as it is"),
        ((1, 1.0), ValueError, "different numbers"),
        ((1, 0), ValueError, "from 0.1 to 4"),
        ((1, 4.5), ValueError, "from 0.1 to 4"),
        ([1, *(1 + n / 20 for n in range(1, 9))], ValueError, "up to 8 different"),
        ((1, float("nan")), ValueError, "finite number"),
        ((1, "a"), ValueError, "finite number"),
        ("1,2", TypeError, "list of numbers"),
        (1.0, TypeError, "list of numbers"),
    ],
)
def test_scales_that_can_not_be(scales, error, message):
    with pytest.raises(error, match=message):
        create(evaluation_scales=scales)


def test_scales_of_the_prediction_take_their_place():
    model, image = create(evaluation_scales=SCALES, evaluation_zoom=dict(below=1.0)), picture()
    (own,), (one,) = predict(model, image), predict(model, image, scales=(1.0,))
    assert model.evaluation_scales == SCALES and model.evaluation_zoom["below"] == 1
    model.evaluation_scales, model.evaluation_zoom = (1.0,), None
    (plain,) = predict(model, image)
    assert np.array_equal(one.mask, plain.mask) and np.array_equal(one.probabilities, plain.probabilities)
    assert np.abs(own.mask - plain.mask).max() > 0.02 and np.array_equal(own.probabilities, plain.probabilities)
    model.evaluation_scales = SCALES
    (own,), (views,) = predict(model, image), predict(model, image, scales=SCALES)
    assert np.array_equal(own.mask, views.mask)
    (larger,) = predict(model, image, scales=(1.5, 2.0))  # the class is that of the first
    scores = seen(model.eval(), preprocess_for(model)(image)[None], Views((1.5,)))[0]
    np.testing.assert_allclose(larger.probabilities, scores.softmax(dim=1)[0].detach(), atol=1e-5)


def test_predictions_side_by_side_leave_the_model_alone():
    """While one is under way, with scales of its own, the model is as it was."""
    model, pictures = create(evaluation_scales=SCALES), [picture(64, 64), picture(64, 96)]
    expected = predict(model, *pictures)
    chosen = predict_images(model, enumerate(pictures), inference=Inference(scales=(1.0, 2.0)))
    for prediction, own, _ in zip(predict_images(model, enumerate(pictures)), expected, chosen, strict=True):
        assert model.evaluation_scales == SCALES
        assert np.array_equal(prediction.mask, own.mask)


def test_strips_by_tiles():
    """An image of more than eight times its shorter side is limited, and its scales with it."""
    model, passes = create(evaluation_scales=SCALES), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[-1]))
    predict(model, picture(32, 1024), scales=SCALES, tile=1024)
    assert passes == [512, 384, 768]


def test_a_backbone_of_one_size_by_tiles():
    model, seen = create(evaluation_scales=SCALES), []
    model.backbone.sizes = ImageSizes(8, fixed=(64, 64))
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    predict(model, picture(64, 64), tile=64)
    assert seen == [1]


def test_only_the_deciding_view_is_classified_by_tiles():
    model, seen = create(evaluation_scales=SCALES, decision="classifier", classifier_scale=1.0), []
    model.classifier.register_forward_pre_hook(lambda *_: seen.append(1))
    (found,) = predict(model, picture(96, 96), tile=32)
    once = len(seen)
    (alone,) = predict(model, picture(96, 96), tile=32, scales=(1.0,))
    assert len(seen) == 2 * once and found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


@pytest.mark.parametrize("flips", [(), ("horizontal",)])
def test_tiles(flips, monkeypatch):
    """Each scale by tiles; among images that go whole."""
    model = create(evaluation_scales=SCALES, mask_source="predicted")
    large, small = picture(96, 160), picture(32, 32)
    _, found, _ = predict(model, small, large, small, tile=32, flips=flips)
    (expected,) = predict(model, large, tile=32, flips=flips, scales=SCALES)
    (alone,) = predict(model, large, tile=32, flips=flips, scales=(1.0,))
    assert found.mask == pytest.approx(expected.mask, abs=1e-5)
    assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    each = [predict(model, large, tile=32, flips=flips, scales=(scale,))[0].mask for scale in SCALES]
    assert found.mask == pytest.approx(sum(each) / 3, abs=1e-5)
    model.evaluation_flip = True
    _, mirrored, _ = predict(model, small, large, small, tile=32, flips=flips)
    turned = large.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    others = [predict(model, turned, tile=32, flips=flips, scales=(scale,))[0] for scale in (0.75, 1.5, 2.0)]
    assert {each.class_index for each in others} == {alone.class_index}  # which weighs the maps
    views = [alone.mask, *(each.mask[:, ::-1] for each in others[:2])]
    assert mirrored.mask == pytest.approx(sum(views) / 3, abs=1e-5)
    assert mirrored.probabilities == pytest.approx(found.probabilities, abs=1e-5)
    model.evaluation_zoom = dict(below=float(mirrored.mask.mean()) + 0.01, share=0.5)
    _, closer, _ = predict(model, small, large, small, tile=32, flips=flips)
    assert closer.mask == pytest.approx((mirrored.mask + others[2].mask[:, ::-1]) / 2, abs=1e-5)
    model.evaluation_zoom = dict(below=float(mirrored.mask.mean()) - 0.01)
    _, usual, _ = predict(model, small, large, small, tile=32, flips=flips)
    assert np.array_equal(usual.mask, mirrored.mask)
    model.evaluation_zoom = None
    model.evaluation_flip = False
    # By themselves, as soon as the largest view is too large.
    monkeypatch.setattr(mme.inference.tiles, "MAX_WHOLE", 64 * 64)
    monkeypatch.setattr(mme.inference.tiles, "TILE", 32)
    square = picture(64, 64)
    (by_tiles,) = predict(model, square)
    # Or a closer look, whether there will be one or not.
    monkeypatch.setattr(mme.inference.tiles, "MAX_WHOLE", 96 * 96)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    predict(model, square)
    whole = list(seen)
    model.evaluation_zoom = dict(below=1e-6)
    predict(model, square)
    assert (64, 64) in whole and set(seen[len(whole) :]) == {(32, 32)}
    model.evaluation_zoom = None
    monkeypatch.undo()
    assert by_tiles.mask == pytest.approx(predict(model, square, tile=32, scales=SCALES)[0].mask, abs=1e-5)


def test_refined_with_the_image_as_it_is():
    """Also where the first of its views is flipped."""
    model, image, refine = create(evaluation_scales=SCALES, evaluation_flip=True), picture(), guided_filter()
    model.evaluation_zoom = dict(below=1.0)
    (found,) = predict(model, image, tile=32, refine=refine)
    (alone,) = predict(model, image, tile=32)
    assert np.array_equal(found.mask, refine_mask(refine, image, alone.mask))


def test_views_without_refinement():
    """As of a model without a refinement, its threshold included."""
    model, images = create(evaluation_scales=SCALES, mask_refinement=dict(sigma=0.7)).eval(), images_of()
    views = Views(SCALES, refined=False)
    scores, mask = see(model, images, views)
    model.mask_refinement = None
    for one, other in zip(see(model, images, Views(SCALES)), (scores, mask), strict=True):
        torch.testing.assert_close(one, other)
    assert (mask - see(create(mask_refinement=dict(sigma=0.7)).eval(), images, Views(SCALES))[1]).abs().max() > 0.01


def test_grad_cam():
    """The mean of the masks of the views, all of the class that the image has."""
    model, images = create(preset="cam", decision="classifier", evaluation_scales=SCALES).eval(), images_of()
    found = GradCAM(model, "grad_cam")(images)
    one = found.mask
    assert torch.equal(found.logits, model(images).logits)
    best = torch.nn.functional.one_hot(found.localizer_logits.argmax(dim=1), 3)
    cam, masks = GradCAM(model, "grad_cam"), []
    for mirror in (False, True):
        masks = []
        for size in ((64, 96), (48, 72), (96, 144), (128, 192)):
            view = enlarged(images, *size).flip(-1) if mirror and size != (64, 96) else enlarged(images, *size)
            region = cam.region(view, model.class_maps(view)[1], best)
            region = region.flip(-1) if mirror and size != (64, 96) else region
            masks.append(plain_mask(model, region, images))
        model.evaluation_flip, model.evaluation_zoom = mirror, None
        before = sum(masks[:3]) / 3
        torch.testing.assert_close(seen(GradCAM(model, "grad_cam"), images)[1], before)
    torch.testing.assert_close(one, masks[0])
    areas = before.mean(dim=(1, 2, 3))
    model.evaluation_zoom = dict(below=float(areas.mean()), share=0.5)
    closer = torch.where((areas < areas.mean())[:, None, None, None], (before + masks[3]) / 2, before)
    torch.testing.assert_close(seen(GradCAM(model, "grad_cam"), images)[1], closer)
    model.evaluation_flip, model.evaluation_zoom = False, None
    model.evaluation_scales = (1.0,)
    cam = GradCAM(model, "grad_cam")
    (three,) = predict(cam, picture(), scales=SCALES)
    cam.evaluation_scales = SCALES
    assert model.evaluation_scales == SCALES
    (own,), (one_scale,) = predict(cam, picture()), predict(cam, picture(), scales=(1.0,))
    assert np.corrcoef(own.mask.ravel(), three.mask.ravel())[0, 1] > 0.95
    assert np.abs(own.mask - one_scale.mask).max() > 0.02
    model.mask_refinement = dict(iterations=2, scale=1)
    refined = GradCAM(model, "grad_cam")(images).mask
    assert refined.shape == one.shape and (refined - one).abs().max() > 0.02
