"""Weights: saved, loaded, refused."""

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import minmax_entropy as mme
from minmax_entropy import hub
from minmax_entropy.hub.config import CONFIG_NAME
from minmax_entropy.hub.weights import WEIGHTS_NAME

K = 3
VARIANTS = {
    "plain": {},
    "options": dict(
        localizer=dict(name="wildcat", modalities=2, alpha=0.3),
        classifier="attention",
        classifier_scale=(48, 40),
        mask_sigma=0.3,
        data_config=dict(mean=(0.1, 0.2, 0.3)),
        erasing_steps=2,
        in_chans=4,
        output_stride=16,
    ),
    "two backbones": dict(shared_backbone=False),
    "no classifier": dict(preset="cam"),
    "reference": dict(preset="reference"),
}


def create(**keywords):
    torch.manual_seed(0)
    return mme.create_model("wsl_test_resnet", num_classes=K, **keywords)


def outputs(model):
    images = torch.randn(2, model.in_chans, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images, torch.tensor([0, 2]))


@pytest.fixture
def saved(tmp_path):
    return create().save_pretrained(tmp_path / "model", class_names=["a", "b", "c"])


def load(directory, **keywords):
    return mme.create_model(f"local-dir:{directory}", **keywords)


def weights_of(directory, change):
    """Write the saved weights again, changed."""
    path = directory / WEIGHTS_NAME
    state = safetensors.torch.load_file(path)
    change(state)
    safetensors.torch.save_file(state, path)


def config_of(directory, change):
    path = directory / CONFIG_NAME
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


# Save and load


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(tmp_path, variant):
    model = create(**VARIANTS[variant])
    model.data_config["crop_pct"] = 0.75
    for buffer in model.buffers():
        buffer.add_(1)  # BatchNorm's statistics are not those of a new model
    directory = model.save_pretrained(tmp_path / "deep" / "model", class_names=["a", "b", "c"], metrics={"dice": 0.5})
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in directory.parent.iterdir()] == ["model"]
    again = load(directory)
    assert again.class_names == ["a", "b", "c"] and again.training
    assert again.data_config == model.data_config
    assert json.dumps(again.config) == json.dumps({**model.config, "data_config": model.data_config})
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=0)


def test_backbone_keywords_survive(tmp_path):
    swin = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), img_size=64)
    model = mme.create_model("wsl_swin_tiny_patch4_window7_224", num_classes=K, **swin)
    torch.testing.assert_close(outputs(load(model.save_pretrained(tmp_path / "swin"))), outputs(model), rtol=0, atol=0)


def test_numbers_of_numpy_and_torch_are_written(tmp_path):
    model = create(erasing_steps=np.int64(2), mask_sigma=np.float32(0.25))
    metrics = {"dice": np.float32(0.5), "error": torch.tensor(0.25), "each": np.arange(3)}
    directory = model.save_pretrained(tmp_path / "m", class_names=np.array(["a", "b", "c"]), metrics=metrics)
    config = json.loads((directory / CONFIG_NAME).read_text())
    assert config["metrics"] == {"dice": 0.5, "error": 0.25, "each": [0, 1, 2]}
    assert (load(directory).erasing.steps, load(directory).mask_sigma) == (2, 0.25)
    assert load(directory).class_names == ["a", "b", "c"]
    with pytest.raises(TypeError, match=r"set .* can't be written to config.json"):
        model.save_pretrained(tmp_path / "other", metrics={"names": {1}})
    assert not (tmp_path / "other").exists()


def test_architecture_alone(saved):
    model = load(saved, pretrained=False)
    assert not torch.equal(model.localizer.to_modalities.weight, load(saved).localizer.to_modalities.weight)


def test_keywords_replace_the_saved_ones(saved):
    model = load(saved, mask_sigma=0.2, erasing_steps=3, drop_path_rate=0.5)
    assert (model.mask_sigma, model.erasing.steps, model.class_names) == (0.2, 3, ["a", "b", "c"])
    assert any(getattr(module, "drop_prob", 0) for module in model.modules())
    assert load(saved, data_config=dict(mean=(0.1, 0.2, 0.3))).data_config["mean"] == (0.1, 0.2, 0.3)
    assert load(saved, img_size=96).data_config["input_size"] == (3, 96, 96)
    assert load(saved, preset="area", mask_omega=4.0).config == {
        **load(saved).config,
        **mme.PRESETS["area"],
        "mask_omega": 4.0,
    }
    with pytest.raises(TypeError, match="'erasing_step'"):
        load(saved, erasing_step=3)


def test_other_classes_give_fresh_heads(saved, caplog):
    with caplog.at_level(logging.INFO, "minmax_entropy.hub.loading"):
        model = load(saved, num_classes=5)
    assert [record.getMessage() for record in caplog.records] == [
        f"local-dir:{saved}: 5 classes instead of 3, both heads start afresh"
    ]
    assert outputs(model).logits.shape == outputs(model).localizer_logits.shape == (2, 5)
    assert model.class_names is None
    torch.testing.assert_close(model.backbone.state_dict(), create().backbone.state_dict(), rtol=0, atol=0)
    caplog.clear()
    load(saved, num_classes=K)
    assert not caplog.records


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "nested.pt"])
def test_checkpoint_path(tmp_path, suffix):
    model = create()
    path = tmp_path / f"weights.{suffix}"
    state = model.state_dict()
    if suffix == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == "nested.pt" else state, path)
    torch.manual_seed(7)
    loaded = mme.create_model("wsl_test_resnet", num_classes=K, checkpoint_path=path)
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)


# What is on the disk stays


def test_an_earlier_model_is_replaced_and_other_files_stay(saved):
    (saved / "README.md").write_text("a card")
    (saved / "logs").mkdir()
    (saved / "logs" / "log.txt").write_text("a log")
    create(mask_sigma=0.1).save_pretrained(saved)
    assert load(saved).mask_sigma == 0.1 and load(saved).class_names is None
    assert (saved / "README.md").read_text() == "a card" and (saved / "logs" / "log.txt").read_text() == "a log"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def fail(*_, **__):
    raise OSError("disk full")


@pytest.mark.parametrize("broken", ["safetensors.torch.save_file", "json.dumps", "pathlib.Path.rename"])
def test_a_save_that_fails_changes_nothing(saved, monkeypatch, broken):
    before = outputs(load(saved))
    with monkeypatch.context() as context:
        context.setattr(broken, fail)
        with pytest.raises(OSError, match="disk full"):
            create(mask_sigma=0.1).save_pretrained(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    torch.testing.assert_close(outputs(load(saved)), before, rtol=0, atol=0)


def test_a_swap_that_fails_puts_the_earlier_model_back(saved, monkeypatch):
    real = Path.rename

    def rename(self, target):
        return fail() if target == saved and not self.name.endswith(".old") else real(self, target)

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="disk full"):
            create(mask_sigma=0.1).save_pretrained(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert load(saved).mask_sigma == 0.28


@pytest.mark.parametrize("config", [None, "{}", "not json", '{"library_name": "transformers"}'])
def test_a_foreign_directory_is_left_alone(tmp_path, config):
    (tmp_path / "thesis.txt").write_text("years of work")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="is not empty and not a saved model, nothing was written"):
        create().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_directory_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create().save_pretrained(".") == tmp_path
    assert load(tmp_path).num_classes == K


@pytest.mark.parametrize("part", ["backbone", "localizer", "classifier"])
def test_a_model_of_modules_is_not_saved(tmp_path, part):
    options = dict(backbone="test_resnet", localizer="max", classifier="max")
    options[part] = nn.Conv2d(3, 96, 3) if part == "backbone" else mme.create_head("max", 96, K)
    with pytest.raises(ValueError, match=f"{part} of this model were given as modules: register them"):
        mme.WSLModel(num_classes=K, **options).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_class_names_have_to_match(tmp_path):
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        create().save_pretrained(tmp_path / "model", class_names=["a", "b"])


# Damaged, foreign, dangerous


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_truncated_weights(saved, size):
    path = saved / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read as weights"):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"hello", "half"])
def test_damaged_checkpoint(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(create().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=r"weights\.pt can't be read"):
        mme.create_model("wsl_test_resnet", num_classes=K, checkpoint_path=path)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_pickled_code_is_not_run(tmp_path, save):
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    save({"state_dict": Attack(proof)}, path)
    with pytest.raises(ValueError, match="can't be read safely as weights"):
        mme.create_model("wsl_test_resnet", num_classes=K, checkpoint_path=path)
    assert not proof.exists()


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {"state_dict": 3}, torch.zeros(2)])
def test_a_file_of_something_else(tmp_path, value):
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="does not hold a dictionary of tensors"):
        mme.create_model("wsl_test_resnet", num_classes=K, checkpoint_path=tmp_path / "weights.pt")


def test_keys_that_do_not_fit_are_all_listed(saved):
    def change(state):
        del state["localizer.to_modalities.bias"]
        del state["backbone.net.conv1.0.weight"]
        state["stranger"] = torch.zeros(1)
        state["classifier.to_modalities.bias"] = torch.zeros(4)

    weights_of(saved, change)
    with pytest.raises(ValueError) as caught:
        load(saved)
    message = str(caught.value)
    assert f"{saved / WEIGHTS_NAME} does not fit the model (4 keys)" in message
    for line in (
        "missing localizer.to_modalities.bias",
        "missing backbone.net.conv1.0.weight",
        "left over stranger",
        "classifier.to_modalities.bias is (4,), the model has (15,)",
    ):
        assert f"\n  {line}" in message


def test_a_load_that_fails_changes_nothing(saved):
    weights_of(saved, lambda state: state.pop("localizer.to_modalities.bias"))
    model = create()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights_of(saved, lambda state: state.update({"backbone.net.conv1.0.weight": torch.zeros(32, 3, 3, 3)}))
    with pytest.raises(ValueError, match="does not fit the model"):
        hub.load_checkpoint(model, saved / WEIGHTS_NAME)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(mask_sgma=0.5), "unknown keyword 'mask_sgma'; did you mean mask_sigma"),
        (lambda c: c["model"].update(backbone="test_resnt"), "unknown backbone 'test_resnt'; did you mean test_resnet"),
        (lambda c: c["model"].update(localizer="wildcad"), "unknown head 'wildcad'; did you mean wildcat"),
        (lambda c: c["model"].pop("num_classes"), "it has no model with a backbone and num_classes"),
        (lambda c: c.pop("model"), "it has no model with a backbone and num_classes"),
        (lambda c: c.update(library_name="timm"), "is not a configuration of minmax_entropy"),
    ],
)
def test_bad_configuration(saved, change, message):
    config_of(saved, change)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_configuration_that_is_not_json(saved):
    (saved / CONFIG_NAME).write_text('{"library_name": "minmax')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(saved)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["config.json"], r"no saved model in .*: config\.json is missing"),
        (["model.safetensors"], r"no weights at .*model\.safetensors"),
        (None, r"no saved model in"),
    ],
)
def test_missing_files(saved, remove, message):
    if remove is None:
        shutil.rmtree(saved)
    for name in remove or []:
        (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load(saved)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        mme.create_model("wsl_test_resnet", num_classes=K, checkpoint_path=tmp_path / "nothing.pt")


def test_modules_that_share_parameters(tmp_path):
    """coat has modules that are part of several others."""
    model = mme.create_model("wsl_coat_lite_tiny", num_classes=2, img_size=64)
    loaded = mme.create_model(f"local-dir:{model.save_pretrained(tmp_path / 'coat')}")
    for (key, value), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
