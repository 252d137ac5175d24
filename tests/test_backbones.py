"""Backbones: every timm family, features against timm's own, image sizes, levels and necks, unused parameters."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import minmax_entropy as mme
from minmax_entropy import backbones
from minmax_entropy.backbones.neck import FeaturePyramidNeck
from minmax_entropy.backbones.sizes import ImageSizes, as_pair
from minmax_entropy.backbones.unused import unused_parameters

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "benchmarks/sweep.py"
SWIN = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
SWIN_NAME = "swin_tiny_patch4_window7_224"


def load_sweep():
    spec = importlib.util.spec_from_file_location("sweep", SWEEP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def own_backbones(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(backbones._BACKBONES, "_factories", dict(backbones._BACKBONES._factories))


def swin(**kwargs):
    return mme.create_backbone(SWIN_NAME, **{"img_size": 64, **SWIN, **kwargs})


def build(name, **kwargs):
    return swin(**kwargs) if name == SWIN_NAME else mme.create_backbone(name, **kwargs)


def randomize(net):
    """Parameters and BatchNorm statistics off their initial values, so that a layer left out shows."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 1.5)
    return net


# One model of each timm family

# The smallest of each timm module (`timm.model_entrypoint(name).__module__`), by parameters.
SMALLEST = (
    """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
    cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121
    dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
    ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18
    legacy_xception levit_128s lowformer_b0 mobilenetv5_base mobilevit_xxs mvitv2_tiny
    naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large
    poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50
    resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1
    skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window16_256 test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet
    test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
    vgg11 visformer_tiny vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
    xception41p xcit_nano_12_p8_224
    """
).split()
# Those that the limits below leave without a training step; with wider ones it takes seconds, or more than a gigabyte.
COSTLY = (
    """
    beit_base_patch16_224 coat_tiny convmixer_768_32 deepseek_vit_412m gcvit_xxtiny gemma4_vit_167m halonet_h1
    hiera_tiny_224 inception_resnet_v2 inception_v3 inception_v4 legacy_xception mobilenetv5_base mvitv2_tiny
    naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pnasnet5large qwen3_vit_88m
    rdnet_tiny sam2_hiera_tiny samvit_base_patch16_224 swinv2_cr_tiny_224 swinv2_tiny_window16_256
    tnt_s_legacy_patch16_224 tresnet_m vgg11 vitamin_small_224 volo_d1_224 xception41p
    """
).split()
LIMITS = dict(seed=3, odd_size=(131, 97), max_parameters=60e6, max_gflops=12.0, train_gflops=40.0)
LIMITS_SLOW = dict(seed=4, odd_size=(201, 167), max_parameters=180e6, max_gflops=250.0, train_gflops=200.0)
WITHOUT_VALUES = {"deepseek_vit_412m", "qwen3_vit_88m"}  # over 500 GFLOPs: shapes alone
NOT_WITHOUT_VALUES = {"gemma4_vit_167m"}  # and a costly one with them


def family_of(name):
    return timm.model_entrypoint(name).__module__.removeprefix("timm.models.")


def test_every_timm_family_is_covered():
    families = {family_of(name) for name in timm.list_models()}
    covered = [family_of(name) for name in SMALLEST]
    new = sorted(families - set(covered))
    assert not new, f"timm has families without a model in SMALLEST above, add the smallest of each: {new}"
    assert len(covered) == len(set(covered)) == len(families)


@pytest.fixture(scope="module")
def check_model():
    return load_sweep().check_model


@pytest.mark.parametrize("name", [name for name in SMALLEST if name not in NOT_WITHOUT_VALUES])
def test_family(name, check_model):
    """Built, evaluated at its default and at an odd size, trained for a step: every parameter gets a gradient."""
    row = check_model(name, **LIMITS)
    assert row["family"] == family_of(name)
    assert row["trained"] or name in COSTLY


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_costly_family(name, check_model):
    row = check_model(name, **LIMITS_SLOW)
    assert row["device"] == ("meta" if name in WITHOUT_VALUES else "cpu")
    assert row["trained"] or name in WITHOUT_VALUES


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(out_index=0), dict(neck="fpn"), dict(neck="fpn", out_index=0)], ids=str)
@pytest.mark.parametrize("name", [name for name in SMALLEST if name not in {"coat_tiny", "gemma4_vit_167m"}])
def test_levels_of_every_family(name, options):
    """Without values, which two families can't run without."""
    with torch.device("meta"):
        backbone = mme.create_backbone(name, **options).eval()
        size = backbone.sizes.nearest(128, 160)
        features = backbone(torch.zeros(1, 3, *size))
    assert features.shape[1] == backbone.num_features
    if "crossvit" not in name:  # resizes what it is given to a square of its own
        strides = [side / found for side, found in zip(size, features.shape[2:], strict=True)]
        assert all(0.6 < stride / backbone.reduction < 2.1 for stride in strides), strides


# Features are those of timm

FEATURES = {
    "test_resnet": {},
    "test_convnext": {},
    "tf_efficientnet_lite0": {},  # a convolution follows the deepest level, as in the next two
    "hrnet_w18_small": {},
    "rexnet_100": {},
    "test_mambaout": {},
    SWIN_NAME: dict(SWIN, img_size=64),
    "test_vit": {},
    "test_vit3": {},
    "vit_wee_patch16_reg1_gap_256": dict(depth=2),
    "vit_medium_patch16_reg4_gap_256": dict(depth=1, class_token=True, global_pool="avg", no_embed_class=True),
}


def timms_map(net, images, height, width):
    """timm's own `forward_features`, brought to NCHW by hand."""
    features = net.forward_features(images)
    if features.ndim == 3:  # [B, prefix + h * w, D]
        tokens = features[:, net.num_prefix_tokens :]
        assert tokens.shape[1] == height * width
        return tokens.transpose(1, 2).reshape(len(images), -1, height, width)
    return features.permute(0, 3, 1, 2) if features.shape[1:3] == (height, width) else features


@pytest.mark.parametrize("name", FEATURES)
def test_features_equal_timms(name):
    net = randomize(timm.create_model(name, num_classes=0, **FEATURES[name])).eval()
    backbone = mme.create_backbone(name, **FEATURES[name]).eval()
    assert not backbone.net.load_state_dict(net.state_dict(), strict=False).missing_keys  # timm's head is left out
    images = torch.randn(2, 3, 64, 64) if "swin" in name else torch.randn(2, 3, *net.default_cfg["input_size"][1:])
    height, width = images.shape[2] // backbone.reduction, images.shape[3] // backbone.reduction
    with torch.no_grad():
        features = backbone(images)
        expected = timms_map(net, images, height, width)
    assert features.shape == (2, backbone.num_features, height, width) and backbone.num_features == net.num_features
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_features_of_tokens_are_normalized_and_in_place():
    """A patch's features stand where the patch is, and the last level passes the final norm."""
    backbone = mme.create_backbone("test_vit", img_size=(48, 80)).eval()
    assert backbone.net.num_prefix_tokens == 1
    for block in backbone.net.blocks:  # without attention a token sees its own patch alone
        nn.init.zeros_(block.attn.proj.weight)
    nn.init.constant_(backbone.net.norm.weight, 3.0)
    nn.init.constant_(backbone.net.norm.bias, 0.5)
    image = torch.zeros(1, 3, 48, 80)
    marked = image.clone()
    marked[:, :, 16:32, 48:64] = torch.randn(3, 16, 16)
    with torch.no_grad():
        changed = (backbone(marked) - backbone(image)).abs().sum(1)[0] > 1e-5
        torch.testing.assert_close(backbone(marked).mean(1), torch.full((1, 3, 5), 0.5), atol=1e-4, rtol=0)
    assert changed.nonzero().tolist() == [[1, 3]]


def test_intermediate_features_equal_timms():
    net = randomize(timm.create_model("test_resnet", num_classes=0)).eval()
    backbone = mme.create_backbone("test_resnet", out_index=2).eval()
    assert not backbone.net.load_state_dict(net.state_dict(), strict=False).missing_keys
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = net.layer2(net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images))))))
        torch.testing.assert_close(backbone(images), expected)
        assert expected.shape == (2, backbone.num_features, 96 // backbone.reduction, 64 // backbone.reduction)


def test_a_level_is_without_what_follows_it():
    """`out_index` is timm's level; by default the classifier's map, of the same size, is taken."""
    backbone, level = mme.create_backbone("test_efficientnet"), mme.create_backbone("test_efficientnet", out_index=-1)
    assert (backbone.num_features, level.num_features) == (256, level.feature_info[-1]["num_chs"]) == (256, 64)
    images = torch.randn(1, 3, 96, 64)
    assert backbone(images).shape == (1, 256, 3, 2) and level(images).shape == (1, 64, 3, 2)
    assert any("conv_head" in name for name, _ in backbone.named_parameters())
    assert not any("conv_head" in name for name, _ in level.named_parameters())
    assert mme.create_backbone("test_efficientnet", neck="fpn").feature_info == level.feature_info


# Attributes


@pytest.mark.parametrize(
    ("name", "num_features", "reduction", "levels", "sizes"),
    [
        ("test_resnet", 96, 32, 5, "any size from 32 x 32"),
        ("test_mambaout", 64, 32, 4, "any size from 32 x 32"),
        ("test_vit", 64, 16, 6, "multiples of 16 from 16 x 16"),
        (SWIN_NAME, 192, 32, 4, "multiples of 4 from 32 x 32"),
    ],
)
def test_attributes(name, num_features, reduction, levels, sizes):
    backbone = build(name).eval()
    assert (backbone.num_features, backbone.reduction, backbone.in_chans) == (num_features, reduction, 3)
    assert isinstance(backbone.net, nn.Module) and backbone.name == name
    assert len(backbone.feature_info) == levels
    assert all({"num_chs", "reduction", "module"} <= set(level) for level in backbone.feature_info)
    assert backbone.feature_info[-1]["num_chs"] == num_features
    assert backbone.feature_info[-1]["reduction"] == reduction
    assert {"input_size", "mean", "std", "interpolation", "crop_pct"} <= set(backbone.data_config)
    assert backbone.data_config["input_size"] == (3, 64, 64) if "swin" in name else (3, 160, 160)
    assert str(backbone.sizes) == sizes
    assert next(backbone.parameters()).requires_grad and backbone.neck is None
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 96, 64)).shape == (1, num_features, 96 // reduction, 64 // reduction)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout", SWIN_NAME])
def test_a_partial_position_counts(name):
    backbone = build(name).eval()
    with torch.no_grad():
        shape = backbone(torch.randn(1, 3, 100, 68)).shape  # of stride 32
    assert shape == (1, backbone.num_features, 4, 3)


# Unused parameters


def gradient_free(backbone, size):
    """Parameters that a real backward pass does not reach, with all of them unfrozen."""
    backbone = copy.deepcopy(backbone).eval()
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    backbone(torch.randn(1, 3, *size)).square().sum().backward()
    return {name for name, parameter in backbone.named_parameters() if parameter.grad is None}


def frozen(module):
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "size", "count", "kwargs"),
    [
        ("hrnet_w18_small", (64, 64), 0, {}),
        ("hrnet_w18_small", (64, 64), 66, dict(out_index=-1)),
        ("hrnet_w18_small", (64, 64), None, dict(out_index=1)),
        ("crossvit_tiny_240", (240, 240), 20, {}),
        ("coat_lite_tiny", (224, 224), 0, {}),
        ("coat_tiny", (224, 224), 8, {}),
        ("efficientvim_m1", (128, 128), 1, {}),
        ("test_resnet", (64, 64), 0, {}),
        ("test_resnet", (64, 64), 0, dict(neck="fpn")),
        ("test_vit", (64, 64), 0, dict(out_index=1)),
    ],
)
def test_what_no_gradient_reaches_is_frozen(name, size, count, kwargs):
    backbone = mme.create_backbone(name, **kwargs)
    assert frozen(backbone) == gradient_free(backbone, size)
    assert count is None or len(frozen(backbone)) == count


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("test_resnet", ("layer2", "layer3", "layer4", "fc")),
        ("test_vit", ("blocks.2.", "blocks.3.", "blocks.4.", "blocks.5.", "norm.", "head.")),
        (SWIN_NAME, ("layers.2", "layers.3", "norm.", "head.")),
    ],
)
def test_later_stages_are_not_trained(name, later):
    whole = [n for n, parameter in timm.create_model(name).named_parameters()]
    assert all(any(n.startswith(stage) for n in whole) for stage in later)
    trained = [n for n, parameter in build(name, out_index=1).net.named_parameters() if parameter.requires_grad]
    assert trained and not [n for n in trained if n.startswith(later)]


class Odd(nn.Module):
    """A part that no result depends on, a BatchNorm, dropout, and a weight that is used under its second name."""

    def __init__(self, needs_values=False):
        super().__init__()
        self.needs_values, self.calls = needs_values, []
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.spare = nn.Linear(4, 4)
        self.tied = nn.Conv2d(4, 4, 1)
        self.again = self.tied

    def forward(self, x):
        self.calls.append(str(x.device))
        assert not self.training and not any(part.training for part in self.modules())
        if self.needs_values and x.sum().item() > 1e9:
            return x
        self.spare(torch.zeros(1, 4, device=x.device))
        return self.again(self.drop(self.norm(self.conv(x))))


@pytest.mark.parametrize("needs_values", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_unused_parameters(needs_values, context):
    module = Odd(needs_values).train()
    module.drop.eval()
    module.conv.weight.requires_grad_(False)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(module.state_dict())
    modes = [part.training for part in module.modules()]
    with context():
        features, unused = unused_parameters(module, 2, (8, 9))
        assert torch.is_grad_enabled() == (context is torch.enable_grad)
    assert unused == ["spare.bias", "spare.weight"]
    assert features.shape == (1, 4, 6, 7) and not features.requires_grad
    assert module.calls == (["meta", "cpu"] if needs_values else ["meta"])
    assert features.is_meta != needs_values
    assert [part.training for part in module.modules()] == modes
    assert not module.conv.weight.requires_grad and module.norm.weight.requires_grad
    assert all(parameter.grad.eq(7).all() and not parameter.is_meta for parameter in module.parameters())
    after = module.state_dict()
    assert before.keys() == after.keys() and all(before[key].equal(after[key]) for key in before)


def test_unused_parameters_restores_modes_after_an_error():
    module = Odd().train()
    with pytest.raises(RuntimeError):
        unused_parameters(module, 5, (8, 8))  # 2 channels
    assert module.training and module.norm.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_built_without_gradients(context):
    with context():
        backbone = mme.create_backbone("hrnet_w18_small", out_index=-1)
    assert len(frozen(backbone)) == 66


# Image sizes


@pytest.mark.parametrize(
    ("sizes", "asked", "nearest"),
    [
        (ImageSizes(32), (201, 167), (201, 167)),
        (ImageSizes(32), (31, 40), (32, 40)),
        (ImageSizes(32, smallest=75), (31, 80), (75, 80)),
        (ImageSizes(16, (16, 16)), (201, 167), (208, 160)),
        (ImageSizes(16, (16, 16)), (1, 23), (16, 16)),
        (ImageSizes(16, (16, 16)), (16, 25), (16, 32)),
        (ImageSizes(32, (4, 4)), (5, 65), (32, 64)),
        (ImageSizes(16, (16, 8)), (25, 25), (32, 24)),
        (ImageSizes(14, (14, 14), smallest=30), (1, 1), (42, 42)),
        (ImageSizes(32, (1, 1), (240, 240)), (1000, 3), (240, 240)),
        (ImageSizes(32, (32, 32), (96, 64)), (96, 96), (96, 64)),
    ],
)
def test_nearest(sizes, asked, nearest):
    assert sizes.nearest(*asked) == nearest
    assert sizes.nearest(*nearest) == nearest
    assert all(isinstance(side, int) for side in sizes.nearest(*asked))


@pytest.mark.parametrize(
    ("sizes", "multiple", "text"),
    [
        (ImageSizes(32), 32, "any size from 32 x 32"),
        (ImageSizes(32, smallest=75), 32, "any size from 75 x 75"),
        (ImageSizes(16, (16, 16)), 16, "multiples of 16 from 16 x 16"),
        (ImageSizes(32, (4, 4)), 32, "multiples of 4 from 32 x 32"),
        (ImageSizes(12, (8, 8)), 24, "multiples of 8 from 16 x 16"),
        (ImageSizes(4, (6, 10)), 60, "multiples of 6 x 10 from 6 x 10"),
        (ImageSizes(16, (16, 16), (96, 64)), 16, "96 x 64 only"),
    ],
)
def test_multiple_and_words(sizes, multiple, text):
    assert (sizes.multiple, str(sizes)) == (multiple, text)


@pytest.mark.parametrize(("size", "pair"), [(7, (7, 7)), ((7, 9), (7, 9)), ([7, 9], (7, 9))])
def test_as_pair(size, pair):
    assert as_pair(size) == pair


@pytest.mark.parametrize("size", [0, -1, (7, 0), (7,), (7, 8, 9), "77", 7.0, (7.0, 8), None])
def test_as_pair_refuses(size):
    with pytest.raises(ValueError, match=r"img_size must be a number of pixels or \(height, width\), got"):
        as_pair(size)


def run(backbone, *size, in_chans=3):
    with torch.no_grad():
        return backbone.eval()(torch.randn(1, in_chans, *size))


@pytest.mark.parametrize("size", [(224, 224), (16, 16), (48, 112)])
def test_a_vit_takes_multiples_of_its_patch(size):
    assert run(mme.create_backbone("vit_tiny_patch16_224", depth=1), *size).shape[2:] == (size[0] // 16, size[1] // 16)


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "stride"),
    [
        ("vit_tiny_patch16_224", dict(depth=1), (320, 256), 16),
        ("vit_tiny_patch16_224", dict(depth=1, dynamic_img_size=False), (64, 96), 16),
        (SWIN_NAME, SWIN, (96, 64), 32),
        (SWIN_NAME, SWIN, 128, 32),
        ("nest_tiny", {}, (192, 192), 16),
        ("gcvit_xxtiny", {}, (128, 128), 32),
        ("cait_xxs24_224", dict(depth=1), (96, 64), 16),
        ("resnet50_clip", {}, (64, 96), 32),
        ("test_resnet", {}, (100, 201), 32),
    ],
)
def test_img_size(name, kwargs, size, stride):
    backbone = mme.create_backbone(name, img_size=size, **kwargs)
    height, width = as_pair(size)
    assert backbone.data_config["input_size"] == (3, height, width)
    assert backbone.sizes.nearest(height, width) == (height, width)
    assert run(backbone, height, width).shape == (1, backbone.num_features, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "named"),
    [
        ("vit_tiny_patch16_224", dict(depth=1), (321, 250), (320, 256)),
        (SWIN_NAME, SWIN, (66, 90), (64, 88)),
        ("gcvit_xxtiny", {}, (112, 112), (128, 128)),
        ("gcvit_xxtiny", {}, (128, 112), (128, 128)),
        ("nest_tiny", {}, (192, 224), (192, 192)),
        ("mvitv2_tiny", {}, (96, 64), (96, 96)),
        ("mvitv2_tiny", {}, (112, 112), (128, 128)),
        ("resnet50_clip", {}, (100, 64), (96, 64)),
        ("test_resnet", {}, (20, 64), (32, 64)),
    ],
)
def test_img_size_refused_names_one_that_works(name, kwargs, size, named):
    with pytest.raises(ValueError) as error:
        mme.create_backbone(name, img_size=size, **kwargs)
    said = str(error.value)
    assert f"{name} can't be built for img_size={size}" in said and said.endswith(str(named))
    backbone = mme.create_backbone(name, img_size=named, **kwargs)
    assert run(backbone, *named).isfinite().all()


def test_a_fixed_family():
    """The classifier's input is the one size that the family takes."""
    model = mme.WSLModel("cait_xxs24_224", 3, img_size=(96, 64), backbone_kwargs=dict(depth=1))
    assert str(model.backbone.sizes) == "96 x 64 only"
    assert model.classifier_size(96, 64) == (96, 64)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    output = model(torch.randn(2, 3, 96, 64), torch.tensor([0, 2]))
    assert output.loss.isfinite() and output.mask.shape == (2, 1, 96, 64)
    assert seen == [(96, 64)] * 3
    with pytest.raises(ValueError, match=r"\(96, 64\) only"):
        model(torch.randn(2, 3, 96, 96))
    with pytest.raises(ValueError, match="96 x 64 only"):
        model.backbone(torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "nearest"),
    [
        ("test_vit", {}, (201, 167), (208, 160)),
        ("hrnet_w18_small", {}, (65, 90), (64, 96)),
        ("resnet50_clip", {}, (65, 90), (64, 96)),
    ],
)
def test_errors_at_call_time_name_the_nearest_size(name, kwargs, size, nearest):
    model = mme.WSLModel(name, 2, backbone_kwargs=kwargs).eval()
    with torch.no_grad():
        with pytest.raises(ValueError) as error:
            model(torch.randn(1, 3, *size))
        assert f"{nearest[0]} x {nearest[1]}" in str(error.value) or str(nearest) in str(error.value)
        assert model(torch.randn(1, 3, *nearest)).logits.isfinite().all()


def test_images_smaller_than_the_stride():
    model = mme.WSLModel("test_resnet", 2).eval()
    with pytest.raises(ValueError, match="31 x 64 are smaller than the backbone's stride of 32"):
        model(torch.randn(1, 3, 31, 64))
    assert model(torch.randn(1, 3, 32, 64)).logits.isfinite().all()


def test_a_backbone_alone_says_what_it_takes():
    with pytest.raises(ValueError, match=r"test_vit fails on images of 65 x 64 \(.*\); it takes multiples of 16"):
        run(mme.create_backbone("test_vit"), 65, 64)


# Weights (in a file: nothing is downloaded)


def saved(path, name, **kwargs):
    net = randomize(timm.create_model(name, **kwargs))
    torch.save(net.state_dict(), path)
    return dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_position_embeddings_follow_the_image_size(tmp_path):
    options = saved(tmp_path / "weights.pth", "test_vit")
    backbone = mme.create_backbone("test_vit", img_size=(96, 64), **options).eval()
    theirs = timm.create_model("test_vit", img_size=(96, 64), num_classes=0, **options).eval()
    weights = torch.load(tmp_path / "weights.pth")
    assert weights["pos_embed"].shape == (1, 1 + 10 * 10, 64)
    assert backbone.net.pos_embed.shape == (1, 1 + 6 * 4, 64)
    assert backbone.net.pos_embed.equal(theirs.pos_embed)
    assert backbone.net.pos_embed[:, :1].equal(weights["pos_embed"][:, :1])  # of the class token
    assert backbone.net.blocks[0].attn.qkv.weight.equal(weights["blocks.0.attn.qkv.weight"])
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), timms_map(theirs, images, 6, 4))


def test_swin_weights_follow_the_image_size(tmp_path):
    options = saved(tmp_path / "weights.pth", SWIN_NAME, **SWIN)
    assert run(swin(img_size=(96, 64), **options), 96, 64).shape == (1, 192, 3, 2)


@pytest.mark.parametrize(("name", "kwargs"), [("cait_xxs24_224", dict(depth=1)), ("levit_128s", {})])
def test_weights_that_do_not_follow_the_image_size(name, kwargs, tmp_path):
    options = saved(tmp_path / "weights.pth", name, **kwargs)
    assert mme.create_backbone(name, **options, **kwargs).sizes.fixed == (224, 224)
    with pytest.raises(ValueError) as error:
        mme.create_backbone(name, img_size=(96, 64), **options, **kwargs)
    assert f"the weights of {name} can't be brought to img_size=(96, 64)" in str(error.value)
    assert "leave img_size out" in str(error.value) and "pretrained=False" in str(error.value)


@pytest.mark.parametrize("in_chans", [1, 4, 13])
@pytest.mark.parametrize(
    ("name", "kwargs", "first"),
    [
        ("test_resnet", {}, "conv1.0.weight"),
        ("test_vit", {}, "patch_embed.proj.weight"),
        (SWIN_NAME, dict(SWIN, img_size=64), "patch_embed.proj.weight"),
    ],
)
def test_channels(name, kwargs, first, in_chans, tmp_path):
    plain = mme.create_backbone(name, in_chans=in_chans, **kwargs)
    assert plain.in_chans == in_chans
    assert run(plain, 64, 64, in_chans=in_chans).shape[1] == plain.num_features

    options = saved(tmp_path / "weights.pth", name, **kwargs)
    ours = mme.create_backbone(name, in_chans=in_chans, **options, **kwargs)
    theirs = timm.create_model(name, in_chans=in_chans, num_classes=0, **options, **kwargs)
    weight = torch.load(tmp_path / "weights.pth")[first]  # [D, 3, k, k]
    if in_chans == 1:
        expected = weight.sum(1, keepdim=True)
    else:  # repeated, and the sum kept for an image of equal channels
        expected = weight.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans] * 3 / in_chans
    torch.testing.assert_close(ours.net.get_parameter(first).data, expected)
    states = ours.net.state_dict(), theirs.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


# Resolution


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(name, stride):
    backbone = mme.create_backbone(name, output_stride=stride)
    assert backbone.reduction == stride and backbone.num_features == mme.create_backbone(name).num_features
    assert run(backbone, 64, 96).shape == (1, backbone.num_features, 64 // stride, 96 // stride)
    assert run(backbone, stride, stride).shape[2:] == (1, 1)


@pytest.mark.parametrize("name", ["test_vit", SWIN_NAME])
def test_output_stride_refused(name):
    with pytest.raises(ValueError, match=rf"{name} can't be built with output_stride=8; .*out_index.*neck=\"fpn\""):
        mme.create_backbone(name, output_stride=8)


@pytest.mark.parametrize(("name", "count"), [("test_resnet", 5), ("test_vit", 6)])
@pytest.mark.parametrize("neck", [None, "fpn"])
def test_out_index_range(name, count, neck):
    for index in (count, -count - 1):
        with pytest.raises(ValueError, match=rf"{name} has {count} feature levels.*\[-{count}, {count}\), got {index}"):
            mme.create_backbone(name, out_index=index, neck=neck)
    for index in (True, 1.0, "1", [1]):
        with pytest.raises(ValueError, match="out_index must be an integer"):
            mme.create_backbone(name, out_index=index, neck=neck)


@pytest.mark.parametrize("index", range(-5, 5))
def test_out_index(index):
    backbone = mme.create_backbone("test_resnet", out_index=index)
    channels, stride = [(32, 2), (32, 4), (48, 8), (192, 16), (96, 32)][index]
    assert (backbone.num_features, backbone.reduction) == (channels, stride)
    assert run(backbone, 64, 96).shape == (1, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize(
    ("name", "kwargs", "levels", "reduction"),
    [
        ("test_resnet", {}, (2, 3, 4), 8),
        ("test_resnet", dict(out_index=1), (1, 2, 3, 4), 4),
        ("test_resnet", dict(out_index=-2), (3, 4), 16),
        ("test_resnet", dict(out_index=4), (4,), 32),
        ("test_resnet", dict(output_stride=16), (2, 4), 8),
        ("test_mambaout", {}, (1, 2, 3), 8),
        (SWIN_NAME, {}, (1, 2, 3), 8),
        (SWIN_NAME, dict(out_index=0), (0, 1, 2, 3), 4),
        ("test_vit", {}, (0, 2, 3, 5), 16),
        ("test_vit", dict(out_index=4), (4, 5), 16),
        ("test_vit3", {}, (1, 3, 6, 8), 16),
    ],
)
def test_neck(name, kwargs, levels, reduction):
    backbone = build(name, neck=dict(name="fpn", channels=24), **kwargs)
    assert (backbone.levels, backbone.reduction, backbone.num_features) == (levels, reduction, 24)
    assert len(backbone.neck.laterals) == len(levels)
    for size in ((64, 96), (100, 68) if backbone.sizes.step[0] <= 4 else (80, 48)):
        features = backbone.train()(torch.randn(2, 3, *size))
        assert features.shape == (2, 24, -(-size[0] // reduction), -(-size[1] // reduction))
    features.square().sum().backward()
    without = [n for n, parameter in backbone.neck.named_parameters() if parameter.grad is None]
    assert not without and not frozen(backbone)
    assert all(parameter.grad.abs().sum() > 0 for parameter in backbone.neck.parameters())


def test_neck_defaults():
    backbone = mme.create_backbone("test_resnet", neck="fpn")
    assert backbone.num_features == backbone.neck.channels == 64
    assert run(backbone, 65, 99).shape == (1, 64, 9, 13)


def test_neck_on_odd_sizes():
    assert run(mme.create_backbone("test_resnet", neck="fpn", out_index=0), 97, 131).shape == (1, 64, 49, 66)


def test_neck_in_evaluation_knows_no_batch():
    neck = FeaturePyramidNeck([8, 16], channels=32).eval()
    levels = torch.randn(3, 8, 9, 7), torch.randn(3, 16, 5, 4)
    for index in range(3):
        alone = neck([level[index : index + 1] for level in levels])
        torch.testing.assert_close(neck(levels)[index : index + 1], alone)


def test_neck_merges_top_down():
    """By hand, with the norms off: the finest level plus the coarser ones, enlarged."""
    neck = FeaturePyramidNeck([1, 1, 1], channels=1)
    for layer in [*neck.laterals, neck.smooth[0]]:
        layer[1] = nn.Identity()
    for lateral in neck.laterals:
        nn.init.ones_(lateral[0].weight)
    nn.init.dirac_(neck.smooth[0][0].weight)
    finest, middle, coarsest = (
        torch.zeros(1, 1, 4, 4),
        torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]),
        torch.full((1,) * 4, 10),
    )
    finest[..., 0, 0] = 100
    with torch.no_grad():
        result = neck([finest, middle, coarsest.float()])[0, 0]
    assert result[0, 0] == 111 and result[0, 3] == 12 and result[3, 0] == 13 and result[3, 3] == 14
    torch.testing.assert_close(result[0, 1], torch.tensor(11 + 1 / 3))


@pytest.mark.parametrize(
    ("neck", "error", "message"),
    [
        ("fpm", ValueError, r"neck must be one of \('fpn',\), got 'fpm'"),
        (dict(channels=32), ValueError, "neck must be one of"),
        (dict(name="fpn", channels=0), ValueError, "channels"),
        (dict(name="fpn", width=3), TypeError, "width"),
    ],
)
def test_bad_necks(neck, error, message):
    with pytest.raises(error, match=message):
        mme.create_backbone("test_resnet", neck=neck)


# timm models that are built already


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_a_timm_model_as_backbone(name):
    net = timm.create_model(name, num_classes=5)
    model = mme.WSLModel(net, 3).eval()
    assert isinstance(model.backbone, backbones.TimmBackbone)
    named = mme.WSLModel(name, 3).eval()
    named.load_state_dict(model.state_dict())
    size = model.backbone.data_config["input_size"][1:]
    assert model.data_config == named.data_config and model.backbone.sizes == named.backbone.sizes
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert model(images).logits.equal(named(images).logits)


def test_a_timm_model_with_a_backbone_each():
    model = mme.WSLModel(timm.create_model("test_resnet"), 3, shared_backbone=False, backbone_kwargs=dict(out_index=2))
    assert model.backbone.reduction == model.classifier_backbone.reduction == 8
    assert model.classifier_backbone.net is not model.backbone.net
    model(torch.randn(2, 3, 64, 64), torch.tensor([0, 2])).loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_a_timm_models_frozen_and_checkpointed_parts():
    """What its owner froze stays frozen; recomputed blocks are seen as used."""
    net = timm.create_model("test_vit")
    net.patch_embed.requires_grad_(False)
    net.set_grad_checkpointing()
    backbone = mme.create_backbone(net)
    assert frozen(backbone) == {"net.patch_embed.proj.weight", "net.patch_embed.proj.bias"}


def test_img_size_of_a_timm_model():
    backbone = mme.create_backbone(timm.create_model(SWIN_NAME, **SWIN), img_size=(96, 64))
    assert backbone.data_config["input_size"] == (3, 96, 64)
    assert run(backbone, 96, 64).shape == (1, 192, 3, 2)


def test_levels_of_a_timm_model():
    backbone = mme.create_backbone(timm.create_model("test_resnet"), neck="fpn", out_index=1)
    assert (backbone.levels, backbone.num_features, backbone.reduction) == ((1, 2, 3, 4), 64, 4)
    assert run(backbone, 64, 64).shape == (1, 64, 16, 16)


def test_a_timm_model_takes_no_keywords():
    with pytest.raises(TypeError, match=r"built already takes no keywords, got \['output_stride'\]"):
        mme.create_backbone(timm.create_model("test_resnet"), output_stride=8)
    with pytest.raises(TypeError, match="takes no keywords"):
        mme.WSLModel(timm.create_model("test_resnet"), 2, backbone_kwargs=dict(drop_rate=0.1))


def test_a_module_takes_no_levels():
    with pytest.raises(TypeError, match=r"Conv2d takes no keywords, got \['neck'\]"):
        mme.create_backbone(nn.Conv2d(3, 8, 3, padding=1), neck="fpn")


@pytest.mark.usefixtures("own_backbones")
def test_a_registered_timm_model_with_a_neck():
    seen = {}

    @mme.register_backbone
    def my_resnet(pretrained=False, in_chans=3, width=1, **kwargs):
        seen.update(kwargs, width=width)
        return timm.create_model("test_resnet", in_chans=in_chans, **kwargs)

    model = mme.create_model(
        "wsl_my_resnet", num_classes=2, in_chans=4, neck="fpn", width=3, output_stride=16, out_index=2
    )
    assert seen == dict(width=3, output_stride=16)  # the factory is not asked for levels
    assert (model.backbone.levels, model.num_features, model.backbone.reduction) == ((2, 4), 64, 8)
    output = model(torch.randn(2, 4, 64, 64), torch.tensor([0, 1]))
    assert output.localizer_maps.shape == (2, 2, 8, 8)
    output.loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


# The sweep


def sweep(*arguments):
    return subprocess.run(
        [sys.executable, str(SWEEP), *map(str, arguments)], capture_output=True, text=True, timeout=24 * 3600
    )


@pytest.mark.slow
def test_sweep_resumes_and_reports(tmp_path):
    output, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    options = "--output", output, "--page", page, "--workers", 1, "--size", 201, 167
    first = sweep("--filter", "test_resnet", "test_vit", *options)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 models, 0 of them done already" in first.stdout and "2 of 2 pass; failed: []" in first.stdout
    settings, *rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert settings["seed"] == 0 and settings["odd_size"] == [201, 167] and settings["timm"] == timm.__version__
    assert [row["name"] for row in rows] == ["test_resnet", "test_vit"]
    expected = dict(status="pass", family="resnet", stride=32, features=96, frozen=0, device="cpu", map=[5, 5])
    assert expected.items() <= rows[0].items()
    assert (rows[0]["default"], rows[0]["odd"], rows[1]["odd"]) == ([160, 160], [201, 167], [208, 160])
    assert (rows[1]["trained"], set(rows[1]["losses"])) == ([64, 64], {"localizer", "foreground", "background"})
    text = page.read_text()
    assert "2 of 2 pass" in text and "at 201 x 167 pixels" in text
    assert "| test_resnet | 0.4 | 32 | 96 | 160 x 160 | any size from 32 x 32 | apache-2.0 | T |" in text
    assert "| test_vit | 0.3 | 16 | 64 | 160 x 160 | multiples of 16 from 16 x 16 | apache-2.0 | T |" in text

    lines = output.read_bytes()
    again = sweep("--filter", "test_resnet", "test_vit", *options)
    assert again.returncode == 0 and "2 models, 2 of them done already" in again.stdout
    assert output.read_bytes() == lines and page.read_text() == text  # with the same "seconds": not run again

    failing = sweep("--filter", "test_resnet", "test_vit", "test_mambaout", *options, "--timeout", 0)
    assert failing.returncode == 1 and "2 of 3 pass; failed: ['test_mambaout']" in failing.stdout
    rows = {row["name"]: row for row in map(json.loads, output.read_text().splitlines()[1:])}
    assert len(rows) == 3 and rows["test_mambaout"]["status"] == "fail"
    assert rows["test_mambaout"]["error"] == "more than 0 s"
    assert "| test_mambaout | | | | | | - | **fails**: more than 0 s |" in page.read_text()
    assert lines.splitlines()[1] in output.read_bytes().splitlines()

    other = sweep("--filter", "test_resnet", *options, "--seed", 1)
    assert other.returncode == 0 and "1 models, 0 of them done already" in other.stdout
    assert [json.loads(line).get("name") for line in output.read_text().splitlines()] == [None, "test_resnet"]


@pytest.mark.slow
def test_sweep_over_every_timm_model(tmp_path):
    """An hour or more."""
    result = sweep("--output", tmp_path / "rows.jsonl", "--page", tmp_path / "page.md")
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()[1:]]
    assert [row["name"] for row in rows] == sorted(timm.list_models())


def test_values_of_shared_modules_are_put_back():
    """coat has modules that are part of several others."""
    net = mme.create_backbone("coat_lite_tiny").net
    assert not any(tensor.is_meta for tensor in net.state_dict().values())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_data_config_has_the_channels(name):
    assert mme.create_backbone(name, in_chans=4).data_config["input_size"][0] == 4


def test_neck_on_a_dilated_network():
    backbone = mme.create_backbone("test_resnet", output_stride=8, neck="fpn")
    assert backbone.levels == (2, 3, 4) and backbone.reduction == 8
    assert run(backbone, 64, 64).shape[2:] == (8, 8)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_branches_need_the_deepest_stride(level):
    """HRNet adds its branches to one another, whichever level is read."""
    backbone = mme.create_backbone("hrnet_w18_small", out_index=level)
    assert backbone.sizes.step == (32, 32)
    assert backbone.sizes.nearest(100, 100) == (96, 96) and run(backbone, 96, 96).isfinite().all()


@pytest.mark.parametrize("name", ["resnetaa34d", "resnet50_mlp", "lambda_resnet26t", "resnet50_clip_gap"])
def test_shortcuts_that_round_need_whole_strides(name):
    """Found by running odd sizes without values; 112 is odd at the last stage alone."""
    backbone = mme.create_backbone(name)
    assert backbone.sizes.step == (32, 32)
    with pytest.raises(ValueError, match="it takes multiples of 32"):
        run(backbone, 112, 112)
    assert run(backbone, *backbone.sizes.nearest(112, 100)).isfinite().all()


@pytest.mark.parametrize("name", ["resnet18d", "test_resnet", "pvt_v2_b0"])
def test_other_shortcuts_do_not(name):
    backbone = mme.create_backbone(name)
    assert backbone.sizes.step == (1, 1) and run(backbone, 112, 104).isfinite().all()


def test_a_timm_model_is_copied():
    net = timm.create_model("test_resnet", num_classes=5)
    shallow, deep = mme.create_backbone(net, out_index=1), mme.create_backbone(net)
    assert (shallow.reduction, deep.reduction) == (4, 32) and run(deep, 64, 64).shape[2:] == (2, 2)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 5) and all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("options", [dict(), dict(img_size=48), dict(dynamic_img_size=True)])
def test_a_transformer_built_by_hand(options):
    """It has no card: its own switches tell the sizes it takes."""
    net = timm.models.VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2)
    if options.get("dynamic_img_size"):
        net = timm.models.VisionTransformer(patch_size=16, embed_dim=32, depth=1, num_heads=2, **options)
    side = options.get("img_size", 64)
    backbone = mme.create_backbone(net, img_size=options.get("img_size"))
    assert backbone.sizes.fixed == (None if options.get("dynamic_img_size") else (side, side))
    model = mme.WSLModel(backbone, 2, img_size=options.get("img_size")).eval()
    assert model(torch.randn(1, 3, side, side)).mask.shape[2:] == (side, side)


def test_an_own_module():
    """What takes no part is frozen; sizes and attributes are the module's where it has them."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 2)

        def forward(self, images):
            return self.conv(images)

    backbone = mme.create_backbone(Own())
    assert (backbone.num_features, backbone.reduction) == (8, 4)
    assert {name for name, p in backbone.net.named_parameters() if not p.requires_grad} == {"fc.weight", "fc.bias"}
    own = Own()
    own.sizes, own.reduction = ImageSizes(4, fixed=(64, 64)), 4
    model = mme.WSLModel(own, 2)
    assert model.classifier_size(64, 64) == (64, 64) and model.num_features == 8


def test_a_backbone_that_was_created_for_something_else():
    backbone = mme.create_backbone("test_resnet", img_size=64)
    with pytest.raises(ValueError, match=r"created for input \(3, 64, 64\) .* not for \(1, 64, 64\)"):
        mme.WSLModel(backbone, 2, in_chans=1)
    with pytest.raises(ValueError, match=r"not for \(3, 96, 96\)"):
        mme.WSLModel(backbone, 2, img_size=96)


def test_reference_preset_keeps_the_weights_of_a_model_passed_in():
    net = timm.create_model("test_resnet")
    model = mme.WSLModel(net, 2, preset="reference")
    for key, value in model.backbone.net.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(features_only=True), TypeError, "features_only is not for a backbone: use out_index"),
        (dict(patch_drop_rate=0.25), ValueError, "patch_drop_rate leaves holes"),
        (dict(neck=dict(name="fpn", chanels=8)), TypeError, "neck 'fpn': .* 'chanels'"),
        (dict(img_size=True), ValueError, "img_size must be a number of pixels"),
    ],
)
def test_options_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        mme.create_backbone("test_vit", **options)


def test_a_factory_keeps_the_options_it_knows(own_backbones):
    seen = {}

    @mme.register_backbone
    def knows_levels(pretrained=False, in_chans=3, out_index=0):
        seen["out_index"] = out_index
        return nn.Conv2d(in_chans, 8, 4, 4)

    assert mme.create_backbone("knows_levels", out_index=2).reduction == 4 and seen == {"out_index": 2}
