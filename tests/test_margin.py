"""The margin of reflection around what the localizer sees in training."""

import numpy as np
import pytest
import torch
from small import SIZE, create
from torch import nn

import minmax_entropy as mme
from minmax_entropy.backbones.margin import ReflectedMargin
from minmax_entropy.backbones.sizes import ImageSizes


def images_of(size=SIZE, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class Means(nn.Module):
    """A convolution that gives the mean of what it sees, zeros beyond the border."""

    num_features, reduction = 1, 16

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 33, stride=16, padding=16, bias=False)
        nn.init.constant_(self.conv.weight, 1 / (3 * 33**2))

    def forward(self, images):
        return self.conv(images)


class OwnGrid(Means):
    """Features of 6 x 6 positions, whatever the image."""

    def forward(self, images):
        return nn.functional.interpolate(images.mean(dim=1, keepdim=True), (6, 6), mode="area")


def within(backbone):
    return mme.WSLModel(backbone, 2, localizer="average", classifier=None, reflect_margin=1)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (20, 16), (5, 3)])
def test_what_is_around_an_image_is_its_reflection(height, width):
    margin = ReflectedMargin(create("wsl_test_resnet").backbone)
    assert margin.pixels == 32
    images = torch.randn(2, 3, height, width)
    expected = np.pad(images.numpy(), [(0, 0), (0, 0), (32, 32), (32, 32)], mode="symmetric")
    assert np.array_equal(margin.extend(images).numpy(), expected)


@torch.no_grad()
def test_padding_that_reaches_one_position_is_cut_off():
    model, images = within(Means()), torch.ones(1, 3, 64, 64)
    before, after = (model.train(training).class_maps(images)[1] for training in (False, True))
    assert before.shape == after.shape == (1, 2, 4, 4)
    before, after, inner = (maps[0].flatten(1) for maps in (before, after, before[..., 1:-1, 1:-1]))
    assert (before.std(dim=1) > 1e-3).all()
    assert torch.allclose(after, inner.mean(dim=1, keepdim=True).expand_as(after), atol=1e-5)  # the same everywhere


@torch.no_grad()
def test_features_of_a_grid_that_does_not_follow_the_image():
    """A ramp stays where it is."""
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    margin = ReflectedMargin(within(OwnGrid()).backbone)
    extended = margin.extend(ramp)
    found = margin(OwnGrid()(extended), tuple(extended.shape[-2:]))
    assert found.shape == (1, 1, 6, 6)
    assert torch.allclose(found[0, 0, 3], torch.linspace(1 / 12, 11 / 12, 6), atol=0.08)


@pytest.mark.parametrize(
    ("keywords", "pixels"), [({}, 32), (dict(neck="fpn"), 32), (dict(output_stride=8), 16), (dict(out_index=1), 16)]
)
def test_the_localizer_alone_sees_it_and_in_training_alone(keywords, pixels):
    settings = dict(reflect_margin=1, evaluation_scales=(1.0,), evaluation_zoom=None, **keywords)
    model = create("wsl_resnet18", preset="refined", **settings)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    output = model.train()(images_of(), torch.tensor([0, 1]))
    assert seen == [SIZE + 2 * pixels, SIZE // 2, SIZE // 2]
    assert output.mask.shape[-1] == SIZE and output.localizer_maps.shape[-1] == SIZE // model.backbone.reduction
    seen.clear()
    with torch.no_grad():
        model.eval()(images_of())
    assert seen == [SIZE]


@pytest.mark.parametrize(
    ("name", "size"),
    [("wsl_test_vit", 96), ("wsl_vit_tiny_patch16_224", 224), ("wsl_swin_tiny_patch4_window7_224", 224)],
)
def test_backbones_that_pad_nothing_or_take_one_size_have_none(name, size):
    margin, images = create(name, reflect_margin=1, img_size=size).margin, images_of(size)
    assert margin.pixels == 0 and margin.extend(images) is images and margin(images, (size, size)) is images


def test_a_step_that_the_margin_breaks():
    backbone = Means()
    backbone.sizes = ImageSizes(16, step=(32, 32))
    assert ReflectedMargin(within(backbone).backbone).pixels == 16
    backbone.sizes = ImageSizes(16, step=(48, 16))
    assert ReflectedMargin(within(backbone).backbone).pixels == 0


def test_it_is_saved_and_needs_no_weights(tmp_path):
    model = create(reflect_margin=0.5)
    assert model.state_dict().keys() == create().state_dict().keys()
    model.save_pretrained(tmp_path)
    margin = mme.create_model(f"local-dir:{tmp_path}").margin
    assert (margin.pixels, margin.share) == (32, 0.5)
    assert create(reflect_margin=True).margin.share == 1 and create(reflect_margin=False).margin.share == 0
    with pytest.raises(ValueError, match=r"reflect_margin must be in \[0, 1\], got 2"):
        create(reflect_margin=2)


def test_a_share_of_the_steps_has_it():
    model = within(Means())
    model.margin.share = 0.5
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    torch.manual_seed(0)
    for _ in range(100):
        model(images_of(32))
    assert set(seen) == {32, 64} and 30 < seen.count(64) < 70
