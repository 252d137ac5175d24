"""The margin of reflection around what the localizer sees."""

import numpy as np
import pytest
import torch
from small import SIZE, create
from torch import nn

import minmax_entropy as mme
from minmax_entropy.backbones.margin import ReflectedMargin


def images_of(size=SIZE, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class Ones(nn.Module):
    """A convolution that counts the pixels which are not padding."""

    num_features, reduction = 1, 16

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 33, stride=16, padding=16, bias=False)
        nn.init.constant_(self.conv.weight, 1 / (3 * 33**2))

    def forward(self, images):
        return self.conv(images)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (20, 16), (5, 3)])
def test_what_is_around_an_image_is_its_reflection(height, width):
    margin = ReflectedMargin(create("wsl_test_resnet").backbone)
    assert (margin.pixels, margin.cells) == (32, 1)
    images = torch.randn(2, 3, height, width)
    expected = np.pad(images.numpy(), [(0, 0), (0, 0), (32, 32), (32, 32)], mode="symmetric")
    assert np.array_equal(margin.extend(images).numpy(), expected)


def test_no_padding_reaches_the_maps():
    backbone = Ones()
    settings = dict(localizer="average", classifier=None)
    plain, within = (mme.WSLModel(backbone, 2, reflect_margin=margin, **settings) for margin in (False, True))
    within.load_state_dict(plain.state_dict())
    images = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        before, after = (model.eval().class_maps(images)[1] for model in (plain, within))
    assert before.shape == after.shape == (1, 2, 4, 4)
    before, after, inner = (maps[0].flatten(1) for maps in (before, after, before[..., 1:-1, 1:-1]))
    assert (before.std(dim=1) > 1e-3).all()
    assert torch.allclose(after, inner.mean(dim=1, keepdim=True).expand_as(after), atol=1e-5)  # the same everywhere


def test_the_localizer_alone_sees_the_margin():
    model = create(preset="refined").train()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    output = model(images_of(), torch.tensor([0, 1]))
    assert seen[0] == SIZE + 64 and set(seen[1:]) == {SIZE // 2}
    assert output.mask.shape[-1] == SIZE and output.localizer_maps.shape[-1] == SIZE // 32


def test_every_look_sees_a_margin():
    model = create(preset="refined", evaluation_zoom=dict(below=1.0)).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        model(images_of())
    assert seen[:3] == [SIZE + 64, 3 * SIZE // 4 + 64, 3 * SIZE // 2 + 64]
    assert set(seen[3:]) == {2 * SIZE + 64}


@pytest.mark.parametrize("name", ["wsl_test_vit", "wsl_vit_tiny_patch16_224", "wsl_swin_tiny_patch4_window7_224"])
def test_backbones_that_pad_nothing_or_take_one_size_have_none(name):
    model = create(name, reflect_margin=True, img_size=None if "test" in name else 224)
    assert model.margin.pixels == 0
    plain = create(name, img_size=None if "test" in name else 224).eval()
    plain.load_state_dict(model.state_dict())
    images = images_of(224)
    with torch.no_grad():
        assert torch.equal(model.eval().class_maps(images)[1], plain.class_maps(images)[1])


def test_it_is_saved_and_needs_no_weights(tmp_path):
    model = create(reflect_margin=True)
    assert model.state_dict().keys() == create().state_dict().keys()
    model.save_pretrained(tmp_path)
    again = mme.create_model(f"local-dir:{tmp_path}").eval()
    images = images_of()
    with torch.no_grad():
        assert torch.equal(again(images).mask, model.eval()(images).mask)
        again.margin = None
        assert not torch.equal(again(images).mask, model(images).mask)
    with pytest.raises(TypeError, match="reflect_margin must be True or False"):
        create(reflect_margin=2)


def test_grad_cam_sees_what_the_localizer_sees():
    pytest.importorskip("pytorch_grad_cam")
    from minmax_entropy.engine.grad_cam import GradCAM

    model = mme.WSLModel(Ones(), 2, localizer="average", classifier=None, reflect_margin=True).eval()
    with torch.no_grad():
        model.localizer.to_modalities.weight.fill_(1.0)
    images = torch.ones(1, 3, 64, 64)
    images[..., :16, :16] = 3.0  # one corner is the brightest
    mask = GradCAM(model, "layer_cam")(images).mask[0, 0]
    assert mask.shape == (64, 64) and mask.argmax() == 0
    assert mask[:16, :16].min() > mask[32:, 32:].max()
