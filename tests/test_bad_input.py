"""Inputs that are wrong, each with an error that says what to do; inputs that are odd, each with a finite result."""

import numpy as np
import pytest
import torch
from torch import nn

import minmax_entropy as mme

K = 3
PRESETS = [None, *mme.PRESETS]


def create(name="wsl_test_resnet", **keywords):
    torch.manual_seed(0)
    return mme.create_model(name, num_classes=K, **keywords)


@pytest.fixture(scope="module")
def model():
    return create()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


TARGET = torch.tensor([0, 2])


def set_pixel(value):
    def change(images):
        images = images.clone()
        images[1, 0, 3, 5] = value
        return images

    return change


# Images


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x[0],
            ValueError,
            r"images must be \[B, 3, H, W\], got 3 dimensions \(3, 64, 64\); .*unsqueeze\(0\)",
        ),
        (lambda x: x[None], ValueError, r"images must be \[B, 3, H, W\], got 5 dimensions"),
        (lambda x: x[:, :1], ValueError, r"images must have 3 channels, got 1 in \(2, 1, 64, 64\)"),
        (lambda x: x.permute(0, 2, 3, 1), ValueError, "got 64 .*; channels come before height and width"),
        (lambda x: x[:0], ValueError, "images is an empty batch"),
        (lambda x: x.byte(), TypeError, "images must be floating point, normalized with mean and std, got torch.uint8"),
        (lambda x: x.long(), TypeError, "images must be floating point, .* got torch.int64"),
        (lambda x: x.double(), TypeError, r"images are torch.float64, the model is torch.float32: use images.to"),
        (lambda x: x.numpy(), TypeError, r"images must be a tensor \[B, 3, H, W\], got ndarray"),
        (lambda x: [x[0], x[1]], TypeError, r"images must be a tensor \[B, 3, H, W\], got list"),
        (lambda x: None, TypeError, "images must be a tensor .* got NoneType"),
        (lambda x: x[:, :, :16], ValueError, "images of 16 x 64 are smaller than the backbone's stride of 32 pixels"),
        (lambda x: x[..., :0], ValueError, "images of 64 x 0 are smaller than"),
        (set_pixel(float("nan")), ValueError, r"images hold NaN or infinite pixels, at batch index \[1\]"),
        (set_pixel(float("inf")), ValueError, r"images hold NaN or infinite pixels, at batch index \[1\]"),
        (set_pixel(-float("inf")), ValueError, r"images hold NaN or infinite pixels, at batch index \[1\]"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [lambda m, x: m(x, TARGET), mme.WSLModel.localize, mme.WSLModel.forward_features],
    ids=["call", "loc", "feat"],
)
def test_images(model, images, call, change, error, message):
    with pytest.raises(error, match=message):
        call(model, change(images))


@pytest.mark.parametrize(
    ("name", "keywords", "size", "message"),
    [
        ("wsl_test_vit", {}, (64, 72), r"can't take images of \(64, 72\); the nearest size that works is \(64, 64\)"),
        ("wsl_test_vit", {}, (15, 64), "images of 15 x 64 are smaller than the backbone's stride of 16 pixels"),
        (
            "wsl_test_coatnet",
            {},
            (64, 96),
            r"images of \(160, 160\) only, got \(64, 96\); resize them, or build it with img_size=\(64, 96\)",
        ),
    ],
)
def test_image_sizes_of_transformers(name, keywords, size, message):
    with pytest.raises(ValueError, match=message):
        create(name, **keywords)(torch.randn(1, 3, *size))


def test_the_proposed_size_works():
    assert create("wsl_test_coatnet", img_size=(64, 96)).eval()(torch.randn(1, 3, 64, 96)).logits.isfinite().all()


# Targets


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.tensor([0, 3]), ValueError, r"target must lie in \[0, 3\), got values in \[0, 3\]"),
        (torch.tensor([-1, 0]), ValueError, r"target must lie in \[0, 3\), got values in \[-1, 0\]"),
        (torch.tensor([0, -100]), ValueError, r"target must lie in \[0, 3\)"),
        (torch.tensor([0.0, 1.0]), TypeError, r"class indices as torch.int64, got torch.float32; use target.long\(\)"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, r"got torch.int32; use target.long\(\)"),
        (torch.tensor([True, False]), TypeError, r"got torch.bool; use target.long\(\)"),
        (torch.eye(3)[:2], TypeError, r"got torch.float32; use target.argmax\(dim=1\)"),
        (torch.eye(3)[:2].long(), ValueError, r"target must be \[2\] as there are images, got \(2, 3\)"),
        (torch.tensor([0, 1, 2]), ValueError, r"target must be \[2\] as there are images, got \(3,\)"),
        (torch.tensor(1), ValueError, r"target must be \[2\] as there are images, got \(\)"),
        ([0, 1], TypeError, r"target must be a tensor, got list"),
        (np.array([0, 1]), TypeError, "target must be a tensor, got ndarray"),
    ],
)
def test_targets(model, images, target, error, message):
    with pytest.raises(error, match=message):
        model(images, target)


def test_target_on_another_device(model, images):
    with pytest.raises(ValueError, match="target is on meta, images are on cpu"):
        model(images, TARGET.to("meta"))


# Arguments


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(num_classes=0), "num_classes must be an integer of 1 or more, got 0"),
        (dict(num_classes=-3), "num_classes must be an integer of 1 or more, got -3"),
        (dict(num_classes=2.0), "num_classes must be an integer of 1 or more, got 2.0"),
        (dict(num_classes="3"), "num_classes must be an integer of 1 or more, got '3'"),
        (dict(num_classes=True), "num_classes must be an integer of 1 or more, got True"),
        (dict(in_chans=0), "in_chans must be an integer of 1 or more, got 0"),
        (dict(img_size=0), r"img_size must be a number of pixels or \(height, width\), got 0"),
        (dict(img_size=(64,)), r"img_size must be a number of pixels or \(height, width\), got \(64,\)"),
        (dict(img_size="64"), r"img_size must be a number of pixels or \(height, width\), got '64'"),
        (dict(classifier_scale=0), "classifier_scale must be a share over 0"),
        (dict(classifier_scale=float("nan")), "classifier_scale must be a share over 0"),
        (dict(classifier_scale="half"), "classifier_scale must be a share over 0, .* got 'half'"),
        (dict(classifier_scale=None), "classifier_scale must be a share over 0, .* got None"),
        (dict(classifier_scale=(32,)), r"classifier_scale must be a number, or \(height, width\) in pixels"),
        (dict(classifier_scale=(32, 0.5)), r"classifier_scale must be a number, or \(height, width\) in pixels"),
        (dict(mask_sigma=1.5), r"mask_sigma is a threshold on a map in \[0, 1\], got 1.5"),
        (dict(mask_sigma="a"), "mask_sigma must be a finite number, got 'a'"),
        (dict(mask_omega=0), "mask_omega must be over 0, got 0"),
        (dict(mask_omega=None), "mask_omega must be a finite number, got None"),
        (dict(mask_normalization="pixel"), r"mask_normalization must be one of \('image', 'batch'\), got 'pixel'"),
        (dict(mask_source="top"), r"mask_source must be one of \('expected', 'predicted'\), got 'top'"),
        (dict(background_loss="max"), "background_loss must be one of"),
        (dict(size_loss="log"), "size_loss must be None or one of"),
        (dict(size_weight="a"), "size_weight must be a finite number, got 'a'"),
        (dict(erasing_steps=-1), "erasing_steps must be an integer of 0 or more, up to 1000, got -1"),
        (dict(erasing_sigma="a"), "erasing_sigma must be a finite number, got 'a'"),
        (dict(erasing_scope="pixel"), "erasing_scope must be one of"),
        (dict(backbone_init="zeros"), r"backbone_init must be one of \('he_fan_out',\), got 'zeros'"),
    ],
)
def test_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        mme.create_model("wsl_test_resnet", **{"num_classes": K, **keywords})


def test_reset_to_no_classes(model):
    with pytest.raises(ValueError, match="num_classes must be an integer of 1 or more, got 0"):
        model.reset_classifier(0)


@pytest.mark.parametrize("number", [np.int64(4), torch.tensor(4)], ids=["numpy", "torch"])
def test_integers_of_other_libraries(number):
    model = mme.create_model("wsl_test_resnet", num_classes=number, erasing_steps=number)
    assert type(model.num_classes) is type(model.config["num_classes"]) is type(model.erasing.steps) is int
    assert (model.num_classes, model.erasing.steps) == (4, 4)


# Modules


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), r"must map images .* to features .*, it gave \(1, 8\)"),
        (nn.Conv2d(4, 8, 3), r"the backbone Conv2d fails on an image of shape \(1, 3, 128, 128\)"),
    ],
    ids=["vector", "channels"],
)
def test_module_without_a_feature_map(net, message):
    with pytest.raises(ValueError, match=message):
        mme.WSLModel(net, K)


class Pair(nn.Module):
    def forward(self, features):
        return features.new_zeros(len(features), 4), features.new_zeros(len(features), 4, *features.shape[2:])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Conv2d(96, K, 1), r"the head Conv2d must give scores \(2, 3\) and maps \(2, 3, 'h', 'w'\)"),
        (Pair(), r"the head Pair must give scores \(2, 3\) .* it gave \[\(2, 4\), \(2, 4, 2, 2\)\]"),
    ],
)
@pytest.mark.parametrize("part", ["localizer", "classifier"])
def test_module_that_is_no_head(images, head, message, part):
    model = mme.WSLModel("test_resnet", K, **{part: head}, classifier_scale=1.0)
    with pytest.raises(ValueError, match=message):
        model(images)


# Odd, and finite


def finite_step(model, images, target):
    model.zero_grad()
    output = model(images, target)
    output.loss.backward()
    assert all(part.isfinite().all() for part in output if isinstance(part, torch.Tensor))
    assert all(value.isfinite() for value in output.losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return output


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("value", [0.0, 1.7])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
def test_flat_image(name, preset, value, steps):
    flat = torch.full((2, 3, 64, 64), value)
    for target in (torch.tensor([0, 1]), torch.tensor([2, 2])):
        finite_step(create(name, preset=preset, erasing_steps=steps), flat, target)
    assert create(name, preset=preset).eval()(flat).mask.isfinite().all()


@pytest.mark.parametrize("keywords", [dict(size_loss="barrier"), dict(size_loss="area"), dict(background_loss="eem")])
@pytest.mark.parametrize("steps", [0, 3])
def test_flat_map(images, keywords, steps):
    """A localizer that sees nothing anywhere: the map is flat to the last bit."""
    model = create(detach_mask=False, erasing_steps=steps, **keywords)
    nn.init.zeros_(model.localizer.to_modalities.weight)
    output = finite_step(model, images, TARGET)
    assert output.mask.amax() == output.mask.amin()


@pytest.mark.parametrize("scale", [1e-30, 1e6])
def test_images_of_odd_range(images, scale):
    finite_step(create(detach_mask=False, erasing_steps=2), images * scale, TARGET)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_batch_of_one(images, preset, steps):
    finite_step(create(preset=preset, erasing_steps=steps, classifier_scale=1.0), images[:1], TARGET[:1])
    finite_step(create("wsl_test_vit", preset=preset, erasing_steps=steps), images[:1], TARGET[:1])


def test_batch_of_one_that_batchnorm_cannot_train_on(images):
    with pytest.raises(
        ValueError, match="BatchNorm can't train on a batch of one whose feature map is a single position"
    ):
        create()(images[:1], TARGET[:1])
    create().eval()(images[:1], TARGET[:1])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
def test_every_image_misclassified_while_erasing(name, images, preset):
    model = create(name, preset=preset, erasing_steps=3)
    model.backbone.eval()
    finite_step(model, images, (model.localize(images).localizer_logits.argmax(dim=1) + 1) % K)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", PRESETS)
def test_low_precision(images, preset, dtype):
    for inputs in (images, torch.zeros_like(images)):
        model = create("wsl_test_vit", preset=preset, erasing_steps=2)
        with torch.autocast("cpu", dtype=dtype):
            finite_step(model, inputs, TARGET)
        finite_step(model.to(dtype), inputs.to(dtype), TARGET)


def test_one_class(images):
    model = mme.create_model("wsl_test_resnet", num_classes=1, erasing_steps=2, detach_mask=False)
    output = finite_step(model, images, torch.tensor([0, 0]))
    assert output.losses["localizer"] == output.losses["foreground"] == output.losses["background"] == 0


def test_smallest_image():
    """One position on the map: nothing to localize, and no NaN."""
    model = create(detach_mask=False, erasing_steps=2)
    finite_step(model, torch.randn(2, 3, 32, 32), TARGET)


def test_strange_sizes():
    for size in ((33, 47), (97, 32), (32, 200)):
        assert finite_step(create(), torch.randn(2, 3, *size), TARGET).mask.shape == (2, 1, *size)
