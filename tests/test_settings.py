"""Every keyword of a model has one home: it is checked whenever it is set, takes effect there, and is saved."""

import pytest

import minmax_entropy as mme

DEFAULTS = mme.create_model("wsl_test_resnet", num_classes=3, img_size=64, preset="paper").settings()
GRADIENT = dict(detach_mask=False)
# Each with another value than that of `preset="paper"`, and what it does not go without.
OTHER = {
    "backbone": ("test_efficientnet", {}),
    "num_classes": (5, {}),
    "task": ("multilabel", {}),
    "in_chans": (4, {}),
    "img_size": (96, {}),
    "backbone_kwargs": ({"output_stride": 16}, {}),
    "backbone_init": ("he_fan_out", {}),
    "shared_backbone": (False, {}),
    "freeze_backbone": (True, {}),
    "freeze_bn": (True, {}),
    "bn_statistics": ("images", {}),
    "data_config": ({"crop_pct": 0.5}, {}),
    "localizer": ("average", {}),
    "classifier": ("lse", {}),
    "decision": ("localizer", {}),
    "classifier_scale": (0.75, {}),
    "mask_source": ("predicted", {}),
    "mask_sigma": (0.3, {}),
    "mask_omega": (4.0, {}),
    "mask_threshold": (0.4, {}),
    "min_probability": (0.2, {}),
    "empty_classes": ([1], {}),
    "mask_refinement": (
        dict(iterations=2, dilations=(1, 2), temperature=0.2, scale=2, sigma=0.4, compression=0.3),
        {},
    ),
    "evaluation_scales": ((0.75, 1.0), {}),
    "evaluation_flip": (True, {}),
    "evaluation_zoom": (dict(scale=1.5, below=0.2, share=0.3), {}),
    "mask_normalization": ("batch", {}),
    "reflect_margin": (0.25, {}),
    "detach_mask": (False, {}),
    "background_loss": ("eem", {}),
    "size_loss": ("barrier", GRADIENT),
    "size_condition": ("sufficient", {}),
    "localizer_weight": (0.5, {}),
    "foreground_weight": (0.6, {}),
    "background_weight": (0.7, {}),
    "size_weight": (0.8, {}),
    "control_weight": (0.9, {}),
    "border_weight": (0.4, GRADIENT),
    "label_smoothing": (0.1, {}),
    "class_weights": ([0.5, 1.0, 1.5], {}),
    "erasing_steps": (2, {}),
    "erasing_sigma": (5.0, {}),
    "erasing_scope": ("batch", {}),
    "erasing_reduction": ("mean", {}),
    "erasing_fallback": ("blank", {}),
    "erasing_normalize_trust": (False, {}),
    "checkpoint_passes": (True, {}),
}
# Those that are of the network as it is built; all others may be set afterwards.
BUILT = {
    *("backbone", "num_classes", "task", "in_chans", "img_size", "backbone_kwargs", "backbone_init", "data_config"),
    *("shared_backbone", "freeze_backbone", "freeze_bn", "localizer", "classifier"),
}


def create(**keywords):
    options = dict(num_classes=3, img_size=64, preset="paper") | keywords
    return mme.WSLModel(options.pop("backbone", "test_resnet"), **options)


def put(model, name, value):
    """Set a keyword where it lives."""
    if name.endswith("_weight"):
        model.criterion.weights[name.removesuffix("_weight")] = value
    elif name.startswith("erasing_"):
        setattr(model.erasing, name.removeprefix("erasing_"), value)
    elif hasattr(model.criterion, name) and name != "task":
        setattr(model.criterion, name, value)
    else:
        setattr(model, name, value)


def test_every_keyword_is_here():
    assert set(OTHER) == mme.WSLModel.config_keywords()


@pytest.mark.parametrize("name", OTHER)
def test_a_keyword_is_saved(tmp_path, name):
    value, others = OTHER[name]
    model = create(**{name: value}, **others)
    found = model.save_pretrained(tmp_path / "model")
    loaded = mme.WSLModel.from_pretrained(found)
    settings, given = loaded.settings(), model.settings()
    saved_whole = {"data_config": settings["data_config"], "backbone_kwargs": given["backbone_kwargs"] or {}}
    assert settings == given | saved_whole
    if name == "data_config":
        assert loaded.data_config == model.data_config and loaded.data_config["crop_pct"] == 0.5
    else:
        assert settings[name] == value != DEFAULTS[name]


@pytest.mark.parametrize("name", sorted(set(OTHER) - BUILT))
def test_what_is_set_is_as_what_is_built(tmp_path, name):
    value, others = OTHER[name]
    model, built = create(**others), create(**{name: value}, **others)
    put(model, name, value)
    assert model.settings() == built.settings() != create(**others).settings()
    loaded = mme.WSLModel.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert loaded.settings()[name] == value


@pytest.mark.parametrize("name", sorted(set(OTHER) - BUILT))
def test_what_is_set_is_checked(name):
    model = create()
    before = model.settings()
    for wrong in ("nothing of the kind", object(), float("nan")):
        with pytest.raises((ValueError, TypeError), match=name.removeprefix("erasing_")):
            put(model, name, wrong)
    assert model.settings() == before


@pytest.mark.parametrize("name", ["freeze_bn", "freeze_backbone"])
def test_what_is_built_can_not_be_set(name):
    with pytest.raises(AttributeError, match=name):
        setattr(create(), name, True)
