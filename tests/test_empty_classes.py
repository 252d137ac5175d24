"""Classes whose images hold no object: the mask is of the others, and empty where one of them is predicted."""

import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy.benchmark.grad_cam import GradCAM
from minmax_entropy.cli import main
from minmax_entropy.data import LabelledImages, SyntheticShapes
from minmax_entropy.engine import (
    Inference,
    choose_min_probability,
    evaluate,
    evaluate_all_ones,
    predict_images,
)
from minmax_entropy.inference.files import predict_files
from minmax_entropy.mask import min_max_normalize, resize, soft_mask, weighted_map


def create(**keywords):
    torch.manual_seed(0)
    options = {
        "preset": "paper",
        "num_classes": 3,
        "img_size": 64,
        "out_index": 1,
        "localizer": "average",
        "classifier": "average",
    }
    return mme.create_model("wsl_test_resnet", **{**options, "decision": "localizer", **keywords})


def test_training_is_the_same():
    torch.manual_seed(0)
    images, target = torch.randn(4, 3, 64, 64), torch.tensor([0, 2, 1, 2])
    usual, found = (create(preset="area", empty_classes=empty).train()(images, target) for empty in ([], [2]))
    assert torch.equal(usual.mask, found.mask) and usual.losses == found.losses


@pytest.mark.parametrize("source", ["expected", "predicted"])
def test_the_mask_is_made_of_the_other_maps(source):
    model = create(empty_classes=[1], mask_source=source).eval()
    logits = torch.tensor([[0.2, 9.0, 1.2], [3.0, -1.0, 0.0]])
    weights = model.map_weights(logits)
    two = logits[:, [0, 2]].softmax(dim=1) if source == "expected" else torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(weights[:, [0, 2]], two)
    assert (weights[:, 1] == 0).all()
    images = torch.randn(2, 3, 64, 64)
    usual = create(mask_source=source).eval().localize(images)
    model.empty_classes = [int(usual.localizer_logits[0].argmax())]
    output = model.localize(images)
    assert torch.equal(output.localizer_logits, usual.localizer_logits) and not torch.equal(output.mask, usual.mask)
    region = weighted_map(output.localizer_maps, model.map_weights(output.localizer_logits))
    expected = soft_mask(min_max_normalize(resize(region, (64, 64))), model.mask_sigma, model.mask_omega)
    torch.testing.assert_close(output.mask, expected)


def test_a_class_alone_beside_an_empty_one():
    """Good or defect: the map is that of the defect, whatever is predicted."""
    model = create(num_classes=2, empty_classes=[1]).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.localize(images).mask, model.localize(images, classes=[0]).mask)


class Two(LabelledImages):
    """Noise; three of four images have an object, which fills them."""

    class_names = ("a", "b", "good")

    def __len__(self):
        return 4

    def image(self, index):
        values = np.random.default_rng(index).integers(0, 256, (64, 64, 3))
        return Image.fromarray(values.astype(np.uint8))

    def target(self, index):
        return index % 3

    def mask(self, index):
        return np.full((64, 64), index % 3 < 2)


@pytest.mark.parametrize(
    "inference",
    [Inference(), Inference(tile=48), Inference(flips=("both",), refine=lambda image, mask: mask)],
    ids=["whole", "tiles", "averages"],
)
def test_answers(inference):
    model, data = create().eval(), Two()
    (plain,) = predict_images(model, [(0, data.image(0))], inference=inference)
    others = [index for index in range(3) if index != plain.class_index]
    model.empty_classes = others[:1]
    (found,) = predict_images(model, [(0, data.image(0))], inference=inference)
    assert found.mask.max() > 0.5
    model.empty_classes = [plain.class_index]
    (found,) = predict_images(model, [(0, data.image(0))], inference=inference)
    assert not found.mask.any() and not found.nothing
    assert (found.class_index, found.probability) == (plain.class_index, plain.probability)


def test_evaluation():
    """Localization is of the images with an object; the others count in the error, and as false alarms."""
    model, data = create().eval(), Two()
    for empty in ([], [2], [1, 2]):
        model.empty_classes = empty
        result = evaluate(model, data)
        predicted, target = ([row[key] for row in result.rows] for key in ("predicted", "target"))
        assert result.metrics["error"] == np.mean([one != other for one, other in zip(predicted, target, strict=True)])
        objects = [row["f1_foreground"] for row in result.rows if row["target"] not in empty]
        assert result.metrics["f1_foreground"] == pytest.approx(np.mean(objects))
        assert all(("f1_foreground" in row) == (row["target"] not in empty) for row in result.rows)
        alarms = [row["predicted"] not in empty for row in result.rows if row["target"] in empty]
        assert result.metrics.get("false_alarms") == (np.mean(alarms) if empty else None)
    ones = evaluate_all_ones(data, empty_classes=[2])
    assert ones["f1_foreground"] == 1.0 > evaluate_all_ones(data)["f1_foreground"]


def test_least_probability_is_of_images_with_an_object():
    model, data = create(empty_classes=[0]).eval(), Two()
    choice = choose_min_probability(model, data, share=0.9)
    rows = [row["probability"] for row in evaluate(model, data).rows if row["target"] != 0]
    assert (choice.min_probability, choice.images) == (min(rows), len(rows))


def test_grad_cam_is_of_the_other_classes():
    pytest.importorskip("pytorch_grad_cam")
    model, images = create().eval(), torch.randn(1, 3, 64, 64)
    usual, best = GradCAM(model)(images).mask, int(model.localize(images).localizer_logits.argmax())
    model.empty_classes = [best]
    second = int(model.map_weights(model.localize(images).localizer_logits).argmax())
    found = GradCAM(model)(images).mask
    assert second != best and not torch.equal(found, usual)


def test_a_file_keeps_its_class(tmp_path):
    model, path = create().eval(), tmp_path / "image.png"
    Two().image(0).save(path)
    model.class_names = ["a", "b", "good"]
    (before,) = predict_files(mme.Predictor(model), [path])
    model.empty_classes = [model.class_names.index(before["class"])]
    (result,) = predict_files(mme.Predictor(model), [path])
    assert before["share"] > 0 and result == {**before, "boxes": [], "share": 0.0}


def test_saved_and_forgotten(tmp_path):
    model = create()
    model.empty_classes = [2]
    model.class_names = ["a", "b", "good"]
    folder = model.save_pretrained(tmp_path / "model")
    assert "| classes without an object | good |" in (folder / "README.md").read_text()
    source = f"local-dir:{folder}"
    again = mme.create_model(source)
    assert again.empty_classes == [2]
    assert mme.create_model(source, num_classes=4).empty_classes == []
    assert mme.create_model(source, num_classes=4, empty_classes=[3, 3]).empty_classes == [3]
    again.reset_classifier(2)
    assert again.empty_classes == [] == again.settings()["empty_classes"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([3], "from 0 to 2"),
        ([0, 1, 2], "leave one of them out"),
        ([-1], "from 0 to 2"),
        (["good"], "a list of class indices"),
        ([True], "a list of class indices"),
        (2, "a list of class indices"),
    ],
)
def test_bad_values(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        create(empty_classes=value)
    model = create(empty_classes=[1])
    with pytest.raises((TypeError, ValueError), match=message):
        model.empty_classes = value
    assert model.empty_classes == [1]
    with pytest.raises(ValueError, match="multilabel image may have no class"):
        create(task="multilabel", empty_classes=[1])


def test_command_line(tmp_path, capsys):
    for part in ("train", "valid", "test"):
        for name, empty in (("good", True), ("shape", False)):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                SyntheticShapes(length=4, size=48, empty=empty).image(index).save(folder / f"{index}.png")
    command = f"train --model wsl_test_resnet --data {tmp_path} --size 48 --epochs 1 --device cpu".split()
    command += ["--output", str(tmp_path / "run")]
    assert main([*command, "--empty-classes", "god"]) == 2
    assert "did you mean good" in capsys.readouterr().err
    assert main([*command, "--set", "empty_classes=[0]"]) == 2
    assert "give --empty-classes" in capsys.readouterr().err
    assert main([*command, "--empty-classes", "good"]) == 0
    saved = f"local-dir:{tmp_path / 'run' / 'model'}"
    assert mme.create_model(saved).empty_classes == [0]
    capsys.readouterr()
    assert main(["evaluate", "--model", str(tmp_path / "run" / "model"), "--data", str(tmp_path)]) == 0
    assert "false alarms %" in capsys.readouterr().out
    again = [*command, "--model", saved, "--overwrite", "--empty-classes"]
    assert main(again) == 0 and mme.create_model(saved).empty_classes == []
