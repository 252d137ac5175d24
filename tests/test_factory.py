"""Models by name: the registry, the curated list, any timm name, presets, and errors that name the way out."""

import functools
import json

import pytest
import timm
import torch
from torch import nn

import minmax_entropy as mme
from minmax_entropy import backbones, factory


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test registers is forgotten after it."""
    for registry in (factory._MODELS, backbones._BACKBONES):
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    monkeypatch.setattr(factory, "_PRETRAINED", dict(factory._PRETRAINED))


class Net(nn.Module):
    num_features, reduction = 6, 4

    def __init__(self, in_chans=3):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 6, 5, stride=4, padding=2)

    def forward(self, x):
        return self.conv(x)


# The curated list


def test_a_few_dozen_models_are_listed():
    names = mme.list_models()
    assert len(names) >= 30
    assert names == sorted(set(names))
    assert all(name.startswith("wsl_") for name in names)


@pytest.mark.parametrize("name", mme.list_models())
def test_listed_models(name):
    """Each is a real timm name, built without memory or time on the meta device."""
    assert timm.is_model(name.removeprefix("wsl_"))
    with torch.device("meta"):
        model = mme.create_model(name, num_classes=7, in_chans=4)
    assert model.config["backbone"] == name.removeprefix("wsl_")
    assert model.localizer.to_modalities.in_channels == model.num_features
    factory_function = mme.model_entrypoint(name)
    assert factory_function.__name__ == name and name.removeprefix("wsl_") in factory_function.__doc__


def test_list_models_filters():
    names = mme.list_models()
    assert mme.list_models("*resnet*") == [name for name in names if "resnet" in name]
    both = mme.list_models(["*vit*", "*swin*"], exclude_filters=["*dinov2*", "*test*"])
    assert both == [n for n in names if ("vit" in n or "swin" in n) and "dinov2" not in n and "test" not in n]
    assert mme.list_models(exclude_filters="*") == mme.list_models("no_such_*") == []


def test_list_models_pretrained(monkeypatch):
    assert set(mme.list_models(pretrained=True)) <= set(mme.list_models())
    mme.register_pretrained("wsl_resnet18", "org/name")
    assert mme.list_models(pretrained=True) == ["wsl_resnet18"]
    assert mme.list_models("*50*", pretrained=True) == []


# Any timm name

UNLISTED = {
    "wsl_test_coatnet": {},
    "wsl_test_mambaout": {},
    "wsl_test_efficientnet_gn": {},
    "wsl_lcnet_050": {},
    "wsl_dla46_c": {},
    "wsl_hrnet_w18_small": {},
    "wsl_repghostnet_050": {},
    "wsl_xcit_nano_12_p16_224": dict(depth=1),
    "wsl_samvit_base_patch16": dict(depth=1, embed_dim=32, num_heads=2, img_size=64),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_any_timm_name(name):
    assert name not in mme.list_models() and mme.is_model(name)
    model = mme.create_model(name, num_classes=2, **UNLISTED[name]).eval()
    height, width = model.backbone.sizes.nearest(64, 64)
    with torch.no_grad():
        assert model(torch.randn(1, 3, height, width)).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("dla46_c", (112, 100), (128, 96)),
        ("hrnet_w18_small", (112, 300), (128, 288)),
        ("halonet26t", (128, 520), (256, 512)),
        ("bat_resnext26ts", (128, 520), (256, 512)),
        ("deepseek_vit_412m", (273, 300), (280, 294)),
        ("eva02_tiny_patch14_224", (20, 50), (14, 56)),
        ("inception_v3", (130, 131), (130, 131)),
    ],
)
def test_sizes_that_a_family_takes(name, size, nearest):
    with torch.device("meta"):
        backbone = mme.create_backbone(name)
    assert backbone.sizes.nearest(*size) == nearest
    if name != "deepseek_vit_412m":  # half a billion weights
        assert mme.create_backbone(name).eval()(torch.zeros(1, 3, *nearest)).shape[1] == backbone.num_features


def test_every_timm_name_is_a_model():
    assert all(mme.is_model(f"wsl_{name}") for name in timm.list_models())
    assert all(mme.is_model(f"wsl_{name}") for name in timm.list_pretrained())


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "vit_base_patch14_dinov2.lvd142m"])
def test_tags(name):
    with torch.device("meta"):
        model = mme.create_model(f"wsl_{name}", num_classes=2)
    assert model.config["backbone"] == name
    assert model.pretrained_cfg["tag"] == name.split(".")[1]


@pytest.mark.parametrize(
    ("name", "is_model"),
    [("wsl_resnet50", True), ("resnet50", False), ("wsl_resnet5", False), ("wsl_", False), ("", False)],
)
def test_is_model(name, is_model):
    assert mme.is_model(name) == is_model


def test_model_entrypoint_builds():
    for name in ("wsl_test_resnet", "wsl_test_mambaout"):
        assert mme.model_entrypoint(name)(num_classes=2, mask_sigma=0.4).mask_sigma == 0.4


def test_defaults():
    model = mme.create_model("wsl_test_resnet")
    assert (model.num_classes, model.in_chans, model.training) == (1000, 3, True)
    options = dict(classifier_scale=0.5, mask_sigma=0.28, mask_omega=8.0, mask_normalization="image")
    assert {key: getattr(model, key) for key in options} == options
    assert (model.erasing.steps, model.erasing.sigma, model.criterion.background_loss) == (0, 10, "sem")
    assert model.classifier_backbone is None


def test_keywords_of_the_contract():
    model = mme.create_model(
        "wsl_test_vit",
        num_classes=4,
        in_chans=1,
        img_size=(32, 48),
        localizer=dict(name="wildcat", modalities=2, kmax=0.2, kmin=0.1, alpha=0.3, dropout=0.5),
        classifier=None,
        classifier_scale=(32, 32),
        mask_sigma=0.4,
        mask_omega=6.0,
        mask_normalization="batch",
        detach_mask=False,
        background_loss="eem",
        erasing_steps=3,
        erasing_sigma=5,
        shared_backbone=True,
        preset=None,
    )
    assert (model.localizer.modalities, model.localizer.alpha, model.classifier) == (2, 0.3, None)
    assert (model.mask_sigma, model.mask_omega, model.erasing.steps, model.erasing.sigma) == (0.4, 6.0, 3, 5.0)
    assert model(torch.randn(2, 1, 32, 48), torch.tensor([3, 0])).loss.isfinite()


def test_backbone_keywords_in_a_dictionary():
    model = mme.create_model("wsl_test_resnet", num_classes=2, backbone_kwargs=dict(output_stride=8), out_index=3)
    assert model.config["backbone_kwargs"] == dict(output_stride=8, out_index=3)


# Presets


def test_presets_are_data():
    assert {"reference", "area", "cam"} <= set(mme.PRESETS)
    assert json.loads(json.dumps(mme.PRESETS)).keys() == mme.PRESETS.keys()
    assert all(set(preset) <= mme.WSLModel.config_keywords() for preset in mme.PRESETS.values())


@pytest.mark.parametrize("preset", mme.PRESETS)
def test_presets_set_keywords_and_given_ones_win(preset):
    plain = mme.create_model("wsl_test_resnet", num_classes=2, preset=preset)
    assert {key: plain.config[key] for key in mme.PRESETS[preset]} == mme.PRESETS[preset]
    model = mme.create_model("wsl_test_resnet", num_classes=2, preset=preset, mask_sigma=0.1, localizer="max")
    assert (model.mask_sigma, type(model.localizer).__name__) == (0.1, "MaxHead")
    direct = mme.WSLModel("test_resnet", 2, preset=preset)
    assert direct.config == {**plain.config, "backbone_kwargs": direct.config["backbone_kwargs"]}


def test_without_a_preset_the_settings_are_the_best_scoring_ones():
    model = mme.create_model("wsl_test_resnet", num_classes=2)
    assert model.config == mme.create_model("wsl_test_resnet", num_classes=2, preset="refined").config
    output = model(torch.randn(2, 3, 96, 96), torch.tensor([0, 1]))
    assert set(output.losses) == {"localizer", "foreground", "background", "control", "size", "border"}
    assert set(mme.PRESETS["paper"]) >= {key for preset in mme.PRESETS.values() for key in preset} - {
        *("classifier_scale", "shared_backbone", "freeze_bn", "backbone_init", "data_config", "mask_omega"),
        *("mask_normalization", "background_loss"),
        *(key for key in mme.PRESETS["reference"] if key.startswith("erasing_")),
    }


def test_options_beside_a_preset_win_one_by_one():
    own = mme.PRESETS["refined"]
    create = functools.partial(mme.create_model, "wsl_test_resnet", num_classes=2, preset="refined")
    model = create(mask_refinement=dict(sigma=0.65), evaluation_zoom=dict(below=0.2))
    assert model.mask_refinement == {**own["mask_refinement"], "sigma": 0.65}
    assert model.evaluation_zoom == {**own["evaluation_zoom"], "below": 0.2}
    assert mme.WSLModel("test_resnet", 2, preset="refined", mask_refinement={}).mask_refinement["sigma"] == 0.55
    assert create(mask_refinement=None).mask_refinement is None and own["mask_refinement"]["sigma"] == 0.55
    head = dict(name="wildcat", kmax=1)  # another head takes none of the preset's options
    assert mme.WSLModel("test_resnet", 2, preset="reference", localizer=head).config["localizer"] == head


def test_models_do_not_share_a_presets_dictionaries():
    before = json.dumps(mme.PRESETS)
    model = mme.create_model("wsl_test_resnet", num_classes=2, preset="reference")
    model.config["localizer"]["kmax"] = 0.5
    model.data_config["mean"] = None
    assert json.dumps(mme.PRESETS) == before


# Registering


def test_register_model():
    @mme.register_model
    def wsl_mine(pretrained=False, **kwargs):
        return mme.WSLModel(Net(), **kwargs)

    assert mme.is_model("wsl_mine") and "wsl_mine" in mme.list_models("wsl_m*")
    assert mme.model_entrypoint("wsl_mine") is wsl_mine
    assert mme.create_model("wsl_mine", num_classes=5).num_classes == 5

    @mme.register_model(name="wsl_other_name")
    def factory_function(pretrained=False, **kwargs):
        return wsl_mine(pretrained, mask_sigma=0.2, **kwargs)

    assert mme.create_model("wsl_other_name", num_classes=5).mask_sigma == 0.2


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match=r"model 'wsl_resnet18' is already registered by minmax_entropy\.zoo"):
        mme.register_model(lambda pretrained=False, **kwargs: None, name="wsl_resnet18")
    zoo_factory = mme.model_entrypoint("wsl_resnet18")
    assert mme.register_model(zoo_factory) is zoo_factory  # a reloaded module is no clash


def test_register_backbone():
    seen = {}

    @mme.register_backbone
    def tiny_net(pretrained=False, in_chans=3, **kwargs):
        seen.update(pretrained=pretrained, **kwargs)
        return Net(in_chans)

    assert "tiny_net" in mme.list_backbones() and mme.is_backbone("tiny_net")
    model = mme.create_model("wsl_tiny_net", pretrained=True, num_classes=2, in_chans=1, width=3)
    assert seen == dict(pretrained=True, width=3)
    assert model(torch.randn(2, 1, 32, 32), torch.tensor([0, 1])).localizer_maps.shape == (2, 2, 8, 8)
    assert mme.create_backbone("tiny_net").num_features == 6


def test_list_backbones():
    assert set(mme.list_backbones()) >= set(timm.list_models())
    assert mme.list_backbones("test_vit*", exclude_filters="*relpos") == [
        "test_vit",
        "test_vit2",
        "test_vit3",
        "test_vit4",
    ]


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wsl_resnt50", "unknown model 'wsl_resnt50'; did you mean .*wsl_resnet50"),
        ("resnet50", "did you mean wsl_resnet50"),
        ("wsl_test_vitt", "did you mean wsl_test_vit"),
        ("wsl_vit_base_patch14_dinov", "did you mean .*wsl_vit_base_patch14_dinov2"),
        ("user/repo", "hf-hub:"),
        ("/some/path", "local-dir:"),
        ("wsl_resnet50.a1", "unknown tag 'a1'; known: a1_in1k"),
        ("wsl_resnet18.zzzzzzzz", "unknown tag 'zzzzzzzz'; known: .*a1_in1k"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        mme.create_model(name, num_classes=2)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (dict(erasing_step=4), TypeError, "unknown keyword 'erasing_step'; did you mean erasing_steps"),
        (dict(zzzzz=4), TypeError, "'zzzzz'.*neither WSLModel nor the backbone test_resnet takes it"),
        (dict(backbone_kwargs=dict(zzzzz=4)), TypeError, "'zzzzz'"),
        (dict(preset="refrence"), ValueError, "unknown preset 'refrence'; did you mean reference"),
        (dict(localizer="wildcad"), ValueError, "unknown head 'wildcad'; did you mean wildcat"),
        (dict(classifier=dict(name="lse", q=1)), TypeError, r"'q'; its options are \['modalities', 'r'\]"),
        (
            dict(out_index=9),
            ValueError,
            r"test_resnet has 5 feature levels \(strides .*\), out_index must be in \[-5, 5\)",
        ),
    ],
)
def test_bad_keywords(keywords, error, message):
    with pytest.raises(error, match=message):
        mme.create_model("wsl_test_resnet", num_classes=2, **keywords)


@pytest.mark.parametrize("name", [None, 3, nn.Conv2d(3, 8, 3)], ids=["None", "int", "module"])
def test_a_name_is_a_string(name):
    with pytest.raises(TypeError, match="a model's name is a string"):
        mme.create_model(name)


@pytest.mark.parametrize("backbone", [None, 3, nn.Conv2d])
def test_a_backbone_is_a_name_or_a_module(backbone):
    with pytest.raises(TypeError, match=r"a backbone is a name or a module \(an instance of nn.Module\), got"):
        mme.WSLModel(backbone, 2)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="unknown backbone 'test_resnt'; did you mean test_resnet"):
        mme.WSLModel("test_resnt", 2)


def test_registered_weights_are_loaded(tmp_path, monkeypatch):
    saved = mme.create_model("wsl_test_resnet", num_classes=3)
    saved.save_pretrained(tmp_path / "model")
    mme.register_pretrained("wsl_test_resnet", local_dir=tmp_path / "model")
    assert mme.list_models(pretrained=True) == ["wsl_test_resnet"]
    loaded = mme.create_model("wsl_test_resnet", pretrained=True)
    for ours, theirs in zip(loaded.state_dict().values(), saved.state_dict().values(), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("name", ["shared_backbone", "detach_mask", "checkpoint_passes", "erasing_normalize_trust"])
def test_flags_are_booleans(name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'False'"):
        mme.create_model("wsl_test_resnet", num_classes=3, **{name: "False"})
