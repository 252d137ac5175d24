"""What is saved beside the weights, and what is made of it: card, example, provenance, registered weights, sizes."""

import json
import logging
import os
import re

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

import minmax_entropy as mme
from minmax_entropy import factory, heads
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import preprocess_for
from minmax_entropy.hub import card

K = 3
NAMES = ["ash", "beech", "cedar"]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(factory, "_PRETRAINED", dict(factory._PRETRAINED))


def create(name="wsl_test_resnet", **keywords):
    torch.manual_seed(0)
    return mme.create_model(name, num_classes=K, **keywords)


def load(directory, **keywords):
    return mme.create_model(f"local-dir:{directory}", **keywords)


def outputs(model, *size):
    images = torch.randn(2, model.in_chans, *(size or (64, 64)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images)


def read_card(directory):
    return ModelCard.load(directory / "README.md")


def snippet(text):
    return re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


# The card


def test_the_card_says_what_is_known(tmp_path):
    figures = {"error": 0.0125, "f1_foreground": torch.tensor(0.7), "dice of trees": 0.123456, "images": 80}
    directory = create().save_pretrained(
        tmp_path / "model",
        class_names=NAMES,
        metrics=figures,
        license="cc-by-4.0",
        training_data=["org/trees", "org/more-trees"],
    )
    found = read_card(directory)
    assert found.data.license == "cc-by-4.0"
    assert found.data.library_name == "minmax_entropy"
    assert found.data.pipeline_tag == "image-segmentation"
    assert found.data.datasets == ["org/trees", "org/more-trees"]
    assert {"weakly-supervised-localization", "pytorch_model_hub_mixin"} <= set(found.data.tags)
    for line in (
        "| error % | 1.2 |",
        "| F1+ % | 70.0 |",
        "| dice of trees | 0.1235 |",
        "| images | 80 |",
        "| licence | cc-by-4.0 |",
        "| trained on | org/trees, org/more-trees |",
        "| classes | 3: ash, beech, cedar |",
        "| backbone | `test_resnet` |",
    ):
        assert line in found.text, line
    assert "example.png" not in found.text


def test_the_card_says_what_is_not_known(tmp_path):
    found = read_card(create().save_pretrained(tmp_path / "model"))
    assert found.data.license is None
    assert "| licence | not stated |" in found.text and "| trained on | not stated |" in found.text
    assert "None were given when the model was saved." in found.text


@pytest.mark.parametrize("options", [{}, dict(task="multilabel"), dict(in_chans=1), dict(in_chans=4)], ids=str)
def test_the_snippet_runs(tmp_path, monkeypatch, options):
    directory = create(**options).save_pretrained(tmp_path / "model")
    Image.new("RGB", (90, 70), "green").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(snippet(read_card(directory).text), "README.md", "exec"), names)
    assert names["probabilities"].shape[-1] == K
    if not options.get("task"):
        assert float(names["probabilities"].sum()) == pytest.approx(1.0, abs=1e-5)
    expected = (1, 1, 160, 160) if options.get("in_chans") == 4 else (1, 70, 90) if options.get("task") else (70, 90)
    assert names["mask"].shape == expected


def test_the_example_shows_what_the_model_marks(tmp_path):
    model, image = create(), SyntheticShapes(1, 64, seed=0)[0].image
    model.train()
    directory = model.save_pretrained(tmp_path / "model", example=image, class_names=NAMES)
    assert model.training
    assert "![An image, and what the model marks in it](example.png)" in read_card(directory).text
    picture = Image.open(directory / "example.png").convert("RGB")
    assert picture.width > 2 * card.CELL
    left = picture.crop((10, picture.height // 3, card.CELL - 10, picture.height // 2))
    right = picture.crop((card.CELL + 20, picture.height // 3, 2 * card.CELL, picture.height // 2))
    assert len(left.getcolors(10**6)) > 20 and left.tobytes() != right.tobytes()[: len(left.tobytes())]


def test_the_example_may_be_a_file(tmp_path):
    SyntheticShapes(1, 64, seed=0)[0].image.save(tmp_path / "tree.png")
    directory = create(task="multilabel").save_pretrained(tmp_path / "model", example=tmp_path / "tree.png")
    assert (directory / "example.png").is_file()
    with pytest.raises(FileNotFoundError):
        create().save_pretrained(tmp_path / "other", example=tmp_path / "nothing.png")
    assert not (tmp_path / "other").exists()


def test_a_card_is_written_again_and_one_of_your_own_is_not(tmp_path):
    directory = tmp_path / "model"
    example = SyntheticShapes(1, 64, seed=0)[0].image
    create().save_pretrained(directory, metrics={"error": 0.5}, example=example)
    create().save_pretrained(directory)
    assert "error" not in read_card(directory).text and not (directory / "example.png").exists()
    (directory / "README.md").write_text("# Mine\n")
    create().save_pretrained(directory, metrics={"error": 0.5})
    assert (directory / "README.md").read_text() == "# Mine\n"


def test_generate_model_card():
    model = create()
    model.class_names = NAMES
    text = str(model.generate_model_card("hf-hub:org/trees"))
    assert 'create_model("hf-hub:org/trees")' in text and "# org/trees" in text and "ash, beech, cedar" in text


# What is known of the weights


def test_what_is_known_stays_but_not_the_figures(tmp_path):
    given = dict(license="cc-by-4.0", training_data="trees", metrics={"error": 0.5})
    first = create().save_pretrained(tmp_path / "first", **given)
    loaded = load(first)
    assert loaded.info == given
    second = load(loaded.save_pretrained(tmp_path / "second"))
    assert second.info == dict(license="cc-by-4.0", training_data="trees")
    third = load(loaded.save_pretrained(tmp_path / "third", license="mit"))
    assert third.info["license"] == "mit"


def test_figures_that_are_none(tmp_path):
    figures = {"f1_foreground": float("nan"), "each": [0.5, torch.tensor(float("inf"))], "error": 0.25}
    directory = create().save_pretrained(tmp_path / "model", metrics=figures)
    assert load(directory).info["metrics"] == {"f1_foreground": None, "each": [0.5, None], "error": 0.25}
    assert "| F1+ % | - |" in read_card(directory).text


CHANGES = {
    "mask_sigma": 0.25,
    "mask_omega": 4.0,
    "mask_source": "predicted",
    "mask_normalization": "batch",
    "classifier_scale": 1.0,
    "detach_mask": False,
    "checkpoint_passes": True,
    "bn_statistics": "images",
    "min_probability": 0.5,
    "empty_classes": [1],
    "erasing.steps": 2,
    "erasing.sigma": 3.0,
    "erasing.scope": "batch",
    "erasing.reduction": "mean",
    "erasing.fallback": "blank",
    "erasing.normalize_trust": False,
    "criterion.background_loss": "eem",
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_are_saved_as_they_are_now(tmp_path, name):
    model = create()
    *parts, last = name.split(".")
    setattr(model.get_submodule(".".join(parts)), last, CHANGES[name])
    again = load(model.save_pretrained(tmp_path / "model"))
    assert getattr(again.get_submodule(".".join(parts)), last) == CHANGES[name]


def test_what_is_set_in_dictionaries_is_saved(tmp_path):
    model = create()
    model.data_config["mean"] = (0.1, 0.2, 0.3)
    model.criterion.weights["background"] = 0.5
    again = load(model.save_pretrained(tmp_path / "model"))
    assert again.data_config["mean"] == (0.1, 0.2, 0.3) and again.criterion.weights["background"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "localizer", mme.create_head("attention", m.num_features, K)), "left over localizer"),
        (lambda m: m.data_config.update(foo=1), "data_config has no 'foo'"),
    ],
)
def test_what_would_not_load_is_not_saved(tmp_path, change, message):
    model = create()
    change(model)
    with pytest.raises(ValueError, match=f"(?s)this model would not load again: .*{message}"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_head_of_your_own(tmp_path, monkeypatch):
    monkeypatch.setattr(heads._HEADS, "_factories", dict(heads._HEADS._factories))

    @mme.register_head
    class GradedHead(heads.AverageHead):
        def __init__(self, in_features, num_classes):
            super().__init__(in_features, num_classes)
            self.grades = [float(value) for value in torch.linspace(0, 1, 3)]  # not on the meta device

    model = create(localizer="GradedHead")
    torch.testing.assert_close(outputs(load(model.save_pretrained(tmp_path / "model"))), outputs(model), rtol=0, atol=0)


# Places


def test_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create().save_pretrained(".", max_shard_size="100KB", example=SyntheticShapes(1, 64, seed=0)[0].image)
    (tmp_path / "notes.txt").write_text("kept")
    create(mask_sigma=0.25).save_pretrained(".")
    assert sorted(os.listdir(".")) == ["README.md", "config.json", "model.safetensors", "notes.txt"]
    assert load(".").mask_sigma == 0.25 and (tmp_path / "notes.txt").read_text() == "kept"


def test_a_folder_of_the_current_directory(tmp_path, monkeypatch):
    directory = create().save_pretrained(tmp_path / "model")
    (directory / "logs").mkdir()
    monkeypatch.chdir(directory / "logs")
    create(mask_sigma=0.25).save_pretrained("..")
    assert os.getcwd() == str(directory / "logs") and load("..").mask_sigma == 0.25


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "five").mkdir()
    (tmp_path / "latest").symlink_to("five")
    create().save_pretrained(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "five" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["five", "latest"]


def test_all_files_can_be_read_by_the_same_people(tmp_path):
    directory = create().save_pretrained(tmp_path / "model")
    assert len({path.stat().st_mode for path in directory.iterdir()}) == 1
    directory.chmod(0o750)
    create().save_pretrained(directory)
    assert directory.stat().st_mode & 0o777 == 0o750


def test_where_weights_came_from_is_not_part_of_an_architecture(tmp_path):
    path = tmp_path / "backbone.safetensors"
    torch.manual_seed(3)
    backbone = timm.create_model("test_resnet", num_classes=0)
    safetensors.torch.save_file(backbone.state_dict(), path)
    model = create(backbone_kwargs=dict(checkpoint_path=str(path), drop_path_rate=0.1))
    assert model.backbone.net.conv1[0].weight.equal(backbone.conv1[0].weight)
    directory = model.save_pretrained(tmp_path / "model")
    path.unlink()
    text = (directory / "config.json").read_text()
    assert "checkpoint_path" not in text and json.loads(text)["model"]["backbone_kwargs"] == {"drop_path_rate": 0.1}
    assert load(directory).backbone.net.conv1[0].weight.equal(backbone.conv1[0].weight)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = create()
    with torch.no_grad():
        model.localizer.to_modalities.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"not saved, they are in localizer\.to_modalities\.bias"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Shards


def test_shards(tmp_path):
    model = create()
    directory = model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    torch.testing.assert_close(load(directory).state_dict(), model.state_dict(), rtol=0, atol=0)
    model.save_pretrained(directory)
    assert [path.name for path in directory.glob("model*")] == ["model.safetensors"]


# from_pretrained


def test_from_pretrained(tmp_path):
    directory = create().save_pretrained(tmp_path / "model", class_names=NAMES)
    model = mme.WSLModel.from_pretrained(directory)
    assert not model.training and model.class_names == NAMES
    torch.testing.assert_close(outputs(model), outputs(load(directory)), rtol=0, atol=0)
    assert mme.WSLModel.from_pretrained(str(directory), mask_sigma=0.1).mask_sigma == 0.1
    with pytest.raises(ValueError, match="'no directory' is not the name of a repository, ORG/NAME"):
        mme.WSLModel.from_pretrained("no directory")


# Other classes, channels and sizes than the saved ones


def test_other_channels_give_a_fresh_first_convolution(tmp_path, caplog):
    directory = create().save_pretrained(tmp_path / "model", class_names=NAMES)
    with caplog.at_level(logging.INFO, "minmax_entropy.hub.loading"):
        model = load(directory, in_chans=4)
    assert [record.getMessage() for record in caplog.records] == [
        f"local-dir:{directory}: 4 channels instead of 3, the first convolution starts afresh"
    ]
    saved = load(directory).state_dict()
    first = "backbone.net.conv1.0.weight"
    for key, value in model.state_dict().items():
        assert (value.shape == (*saved[key].shape[:1], 4, 3, 3)) if key == first else value.equal(saved[key]), key
    assert model.class_names == NAMES and len(model.data_config["mean"]) == 4
    assert outputs(model).logits.shape == (2, K)


def test_what_does_not_fit_otherwise_is_listed(tmp_path):
    directory = create().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"(?s)does not fit the model \(2 keys\).*localizer\.to_modalities\.weight"):
        load(directory, localizer=dict(name="wildcat", modalities=2))
    with pytest.raises(ValueError, match=r"left over classifier\.to_modalities\.weight"):
        load(directory, classifier=None)


@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
def test_any_size(tmp_path, name):
    directory = create(name).save_pretrained(tmp_path / "model")
    model = load(directory, img_size=(96, 64))
    assert model.data_config["input_size"] == (3, 96, 64)
    torch.testing.assert_close(model.state_dict(), load(directory).state_dict(), rtol=0, atol=0)
    again = load(model.save_pretrained(tmp_path / "again"))
    assert again.data_config == model.data_config
    assert preprocess_for(again).short_side == 64


def test_one_size_is_brought_to_another(tmp_path):
    options = dict(depths=(1, 1, 1, 1), embed_dim=(32, 32, 32, 32), stem_width=16)
    model = create("wsl_coatnet_pico_rw_224", img_size=64, backbone_kwargs=options)
    directory = model.save_pretrained(tmp_path / "model")
    other = load(directory, img_size=96)
    assert other.backbone.sizes.fixed == (96, 96)
    again = load(other.save_pretrained(tmp_path / "again"))
    torch.testing.assert_close(outputs(again, 96, 96), outputs(other, 96, 96), rtol=0, atol=0)


def test_sizes_that_can_not_be(tmp_path):
    with pytest.raises(ValueError, match=r"can't be built for img_size=\(50, 50\); the nearest size that works is"):
        create("wsl_test_vit").set_input_size(50)
    cait = create("wsl_cait_xxs24_224", backbone_kwargs=dict(depth=1, embed_dim=16, num_heads=1))
    with pytest.raises(ValueError, match=r"timm can't bring the weights of cait_xxs24_224 to .*images to 224 x 224"):
        cait.set_input_size(96)


# Registered weights


def test_registered_weights_by_tag(tmp_path):
    directory = create().save_pretrained(tmp_path / "model")
    mme.register_pretrained("wsl_test_resnet.trees", local_dir=directory)
    assert mme.list_models(pretrained=True) == ["wsl_test_resnet.trees"]
    assert mme.list_models("*vit*", pretrained=True) == []
    model = mme.create_model("wsl_test_resnet.trees", pretrained=True)
    torch.testing.assert_close(outputs(model), outputs(load(directory)), rtol=0, atol=0)
    assert mme.create_model("wsl_test_resnet.trees", pretrained=True, num_classes=5).num_classes == 5
    assert mme.create_model("wsl_test_resnet.trees", num_classes=4).num_classes == 4  # the architecture alone
    assert mme.is_model("wsl_test_resnet.trees")


def test_weights_are_registered_with_their_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(factory.hub, "load_model", lambda _, source, **keywords: asked.append((source, keywords)))
    mme.register_pretrained("wsl_test_resnet", "org/trees", revision="v2")
    with pytest.raises(AttributeError):  # nothing is loaded here
        mme.create_model("wsl_test_resnet", pretrained=True, num_classes=2)
    assert asked == [("hf-hub:org/trees@v2", {"num_classes": 2})]
    mme.register_pretrained("wsl_test_resnet", "org/trees", revision="v2")  # again, the same


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("wsl_resnt50", "org/name"), {}, ValueError, "unknown model 'wsl_resnt50'; did you mean .*wsl_resnet50"),
        (("wsl_resnet50",), {}, ValueError, "give hf_hub_id or local_dir"),
        (("wsl_resnet50", "org/name"), dict(local_dir="."), ValueError, "give hf_hub_id or local_dir"),
        (("wsl_resnet50", "a/b/c"), {}, ValueError, "'a/b/c' is not the name of a repository"),
        (("wsl_resnet50",), dict(local_dir="nothing"), FileNotFoundError, "no saved model in .*nothing"),
    ],
)
def test_what_is_not_registered(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        mme.register_pretrained(*arguments, **keywords)
    assert mme.list_models(pretrained=True) == []


def test_a_name_has_one_set_of_weights():
    mme.register_pretrained("wsl_resnet50", "org/one")
    with pytest.raises(ValueError, match="has weights already, at hf-hub:org/one; give these a tag"):
        mme.register_pretrained("wsl_resnet50", "org/two")


def test_registered_weights_are_of_that_architecture(tmp_path):
    directory = create().save_pretrained(tmp_path / "model")
    mme.register_pretrained("wsl_resnet18", local_dir=directory)
    with pytest.raises(ValueError, match="is registered for wsl_resnet18, but it has the backbone test_resnet"):
        mme.create_model("wsl_resnet18", pretrained=True)


# A file of weights for an architecture by name


def test_a_checkpoint_of_other_classes_or_channels(tmp_path, caplog):
    path = create().save_pretrained(tmp_path / "model") / "model.safetensors"
    saved = safetensors.torch.load_file(path)
    with caplog.at_level(logging.INFO, "minmax_entropy.hub.loading"):
        model = mme.create_model("wsl_test_resnet", num_classes=5, in_chans=1, checkpoint_path=path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 5 classes instead of those of the file, both heads start afresh",
        f"{path}: 1 channels instead of those of the file, the first convolution starts afresh",
    ]
    fresh = {key for key, value in model.state_dict().items() if not value.equal(saved[key])}
    assert fresh == {
        "backbone.net.conv1.0.weight",
        *(f"{head}.to_modalities.{part}" for head in ("localizer", "classifier") for part in ("weight", "bias")),
    }


def test_classes_that_were_not_asked_for_are_an_error(tmp_path):
    path = create().save_pretrained(tmp_path / "model") / "model.safetensors"
    with pytest.raises(ValueError, match=r"does not fit the model \(4 keys\)"):
        mme.create_model("wsl_test_resnet", checkpoint_path=path)
    with pytest.raises(ValueError, match=r"does not fit the model"):
        mme.create_model("wsl_test_vit", num_classes=5, checkpoint_path=path)
