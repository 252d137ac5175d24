"""Checkpoints of the authors' implementation, converted to models of this library."""

import re

import golden_data as golden
import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy import cli
from minmax_entropy.engine import preprocess_for

SMALL = dict(block="basic", layers=[1, 1, 1, 1], C=2, M=5, kmax=0.3, scale=[0.5, 0.5], sigma=0.4, w=6, weight_seed=1)
HEAD = dict(name="wildcat", modalities=5, kmax=0.3)


@pytest.fixture(scope="module")
def state():
    return golden.reference_state(SMALL)


def zeros(key, shape):
    return torch.zeros(shape, dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32)


def outputs(model):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images)


def test_as_the_checkpoint_loaded_by_hand(state, tmp_path):
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "best.pt")
    model = mme.convert_reference_checkpoint(tmp_path / "best.pt", localizer=HEAD, classifier=HEAD)
    assert not model.training and (model.mask_sigma, model.mask_omega) == (pytest.approx(0.4), 6.0)
    torch.testing.assert_close(outputs(model), outputs(golden.build(SMALL, torch.float32).eval()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("block", "layers", "backbone"),
    [
        ("resnet18", None, "resnet18"),
        ("resnet50", None, "resnet50s"),
        ("basic", [1, 2, 1, 1], "resnet18"),
        ("bottleneck", [1, 1, 2, 1], "resnet50"),
    ],
)
def test_the_network_is_read_from_the_checkpoint(block, layers, backbone):
    shapes = golden.reference_shapes(block, layers, classes=3, modalities=4)
    state = {key: zeros(key, shape) for key, shape in shapes.items()}
    model = mme.convert_reference_checkpoint(state, modalities=4)
    assert (model.config["backbone"], model.num_classes) == (backbone, 3)
    for name in ("localizer", "classifier"):
        assert getattr(model, name).modalities == 4
    assert not model.backbone.net.layer1[0].conv1.weight.any()


def test_the_layers_of_resnet101(monkeypatch):
    shapes = golden.reference_shapes("resnet101", None, classes=2, modalities=5)
    state = {key: zeros(key, shape) for key, shape in shapes.items() if "layer" not in key or "conv" in key}
    with pytest.raises(ValueError, match=r"missing backbone\.net\.layer3\.22\.bn3\.weight|and \d+ more"):
        mme.convert_reference_checkpoint(state)


def test_what_a_checkpoint_does_not_hold(state):
    model = mme.convert_reference_checkpoint(state, kmax=0.3, dropout=0.5, classifier_scale=0.75, drop_path_rate=0.1)
    for head in (model.localizer, model.classifier):
        assert (head.kmax, head.modalities) == (0.3, 5)
    assert model.classifier_scale == 0.75 and model.config["backbone_kwargs"]["drop_path_rate"] == 0.1


def test_images_are_prepared_as_the_authors_do(state):
    model = mme.convert_reference_checkpoint(state)
    preprocess = preprocess_for(model)
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (preprocess.short_side, preprocess.reference, preprocess.multiple) == (None, True, 32)
    assert preprocess(Image.new("RGB", (775, 522))).shape == (3, 544, 800)  # its own size, padded
    birds = preprocess_for(mme.convert_reference_checkpoint(state, short_side=200))
    assert birds(Image.new("RGB", (400, 300))).shape == (3, 320, 416)  # not made smaller
    assert birds(Image.new("RGB", (180, 150))).shape == (3, 224, 256)  # enlarged to 200 x 240, padded


def test_preparation_is_saved(state, tmp_path):
    model = mme.convert_reference_checkpoint(state, short_side=200, class_names=["a", "b"])
    again = mme.create_model(f"local-dir:{model.save_pretrained(tmp_path / 'model')}").eval()
    assert preprocess_for(again) == preprocess_for(model) and again.class_names == ["a", "b"]
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s.clear(), {}, "the state dict is no checkpoint of the authors' implementation: it is empty"),
        (lambda s: s.pop("conv3.weight"), {}, "is no checkpoint of the authors' implementation: it has"),
        (lambda s: s.pop("layer2.0.bn1.bias"), {}, r"missing backbone\.net\.layer2\.0\.bn1\.bias"),
        (lambda s: s.update(stranger=torch.zeros(1)), {}, "left over stranger"),
        (lambda s: None, dict(modalities=3), "has 10 maps, which are not 3 for each class: give modalities"),
        (lambda s: None, dict(class_names=["a"]), "has 2 classes, 1 names were given"),
        (lambda s: None, dict(mask_sgima=1), "mask_sgima"),
    ],
)
def test_what_is_no_such_checkpoint(state, change, options, message):
    changed = dict(state)
    change(changed)
    with pytest.raises((ValueError, TypeError), match=message):
        mme.convert_reference_checkpoint(changed, **options)


# The command


def test_convert_then_predict(state, tmp_path, capsys):
    torch.save(state, tmp_path / "best.pt")
    noise = np.random.default_rng(0).integers(0, 256, (97, 130, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "slide.png")
    model = tmp_path / "model"
    arguments = [str(tmp_path / "best.pt"), "--output", str(model), "--data-set", "glas"]
    assert cli.main(["convert", *arguments, "--set", "classifier_scale=0.75"]) == 0
    said = capsys.readouterr().out
    assert "resnet18, 2 classes (benign, malignant), mask_sigma 0.4" in said
    assert mme.create_model(f"local-dir:{model}").classifier_scale == 0.75
    assert cli.main(["predict", str(tmp_path / "slide.png"), "--model", str(model), "--output", str(tmp_path)]) == 0
    assert re.search('"class": "(benign|malignant)"', capsys.readouterr().out)
    assert Image.open(tmp_path / "slide_mask.png").size == (130, 97)


def test_a_wrong_file_is_one_line(tmp_path, capsys):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert cli.main(["convert", str(tmp_path / "other.pt"), "--output", str(tmp_path / "model")]) == 2
    assert "other.pt is no checkpoint of the authors' implementation: it has 1 keys, weight" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
