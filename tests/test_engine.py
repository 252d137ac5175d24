"""Recipes, training, evaluation, prediction, and the pictures and tables made of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import SIZE, InMemory, create, noise_images

import minmax_entropy as mme
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.data import DamagedFileError, ImageFiles, Record
from minmax_entropy.engine import (
    Recipe,
    evaluate,
    evaluate_all_ones,
    fit,
    predict_images,
    preprocess_for,
)
from minmax_entropy.engine.cases import case_grid, ranked_cases
from minmax_entropy.inference.files import expand_paths, predict_files
from minmax_entropy.metrics import dice
from minmax_entropy.report import pictures
from minmax_entropy.report.pictures import grid, mask_picture, overlay, save_picture
from minmax_entropy.report.tables import metrics_table


@pytest.fixture
def files(tmp_path, shapes):
    """Six images on disk; the third and the last are damaged."""
    records = []
    for index in range(6):
        path = tmp_path / f"{index}.png"
        shapes.image(index).save(path)
        if index in (2, 5):
            path.write_bytes(path.read_bytes()[:100])
        records.append(Record(path, None, "ab"[index % 2]))
    return ImageFiles(records)


# Evaluation


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


SIZES = [(40, 50), (40, 50), (33, 64), (70, 35), (40, 50), (31, 31), (31, 31), (31, 31)]


@pytest.fixture(scope="module")
def various():
    """Images of various sizes, some of which follow each other; the third has no mask."""
    rng = np.random.default_rng(1)
    masks = [rng.random(size) < 0.3 for size in SIZES]
    masks[2] = None
    return InMemory(noise_images(SIZES), [index % 2 for index in range(len(SIZES))], masks)


@pytest.mark.parametrize(
    "keywords", [{}, dict(preset="cam"), dict(preset="reference")], ids=["ours", "cam", "reference"]
)
def test_evaluation_equals_one_by_one(various, keywords):
    """Whatever the batches: each image at its own size, by the model's forward and a crop and resize of the mask."""
    model = create(**{**keywords, "mask_normalization": "image"})
    preprocess = preprocess_for(model)
    result = evaluate(model, various, batch_size=3)
    assert model.training and [row["name"] for row in result.rows] == [str(index) for index in range(8)]
    model.eval()
    errors, foreground, background = [], [], []
    for index, row in enumerate(result.rows):
        image, target, truth, *_ = various[index]
        with torch.no_grad():
            output = model(preprocess(image).unsqueeze(0))
        mask = preprocess.restore(output.mask[0], (image.height, image.width))[0].numpy()
        probabilities = output.logits.softmax(dim=1)[0]
        assert row["predicted"] == int(probabilities.argmax()) and row["target"] == target
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert row["mask_area"] == pytest.approx(mask.mean(), abs=1e-5)
        errors.append(row["predicted"] != target)
        if truth is None:
            assert "f1_foreground" not in row
            continue
        foreground.append(dice(mask >= 0.5, truth))
        background.append(dice(mask < 0.5, ~truth))
        assert row["f1_foreground"] == pytest.approx(foreground[-1], abs=5e-3)  # a pixel at the threshold may flip
    metrics = result.metrics
    assert metrics["error"] == np.mean(errors)
    assert metrics["f1_foreground"] == pytest.approx(np.mean(foreground), abs=2e-3)
    assert metrics["f1_background"] == pytest.approx(np.mean(background), abs=2e-3)
    assert metrics["mask_area"] == pytest.approx(np.mean([row["mask_area"] for row in result.rows]))


def test_evaluation_without_masks(various):
    result = evaluate(create(), various, with_masks=False)
    assert set(result.metrics) == {"error", "mask_area", "border_share"} and len(result.rows) == 8


def test_evaluation_without_masks_opens_none(files):
    class Closed(InMemory):
        def mask(self, index):
            raise AssertionError("a mask was opened")

    images, model = noise_images([(SIZE, SIZE)] * 2), create().eval()
    with torch.no_grad():
        logits = model(torch.stack([preprocess_for(model)(image) for image in images])).logits
    wrong = logits.argmax(dim=1) != torch.tensor([0, 1])
    found = evaluate(model, Closed(images, [0, 1]), with_masks=False).metrics["error"]
    assert found == wrong.float().mean()


def test_evaluation_in_training_mode_changes_no_statistics(various):
    model = create().train()
    before = state(model)
    evaluate(model, various)
    assert same(before, state(model)) and model.training
    evaluate(model.eval(), various)
    assert not model.training


def test_evaluation_of_damaged_files(files):
    with pytest.raises(DamagedFileError, match=r"2\.png"):
        evaluate(create(), files)
    result = evaluate(create(), files, skip_damaged=True)
    assert result.damaged == [files.name(2), files.name(5)]
    assert [row["name"] for row in result.rows] == [files.name(index) for index in (0, 1, 3, 4)]
    with pytest.raises(ValueError, match="none of the 2 images could be read"):
        evaluate(create(), InMemory([None, None], [0, 1]), skip_damaged=True)


def test_evaluation_of_a_mask_of_another_size():
    data = InMemory(noise_images([(SIZE, SIZE)]), [0], [np.ones((SIZE, SIZE - 1), dtype=bool)])
    with pytest.raises(DamagedFileError, match="the mask of 0 is 64 x 63, the image is 64 x 64"):
        evaluate(create(), data)
    assert evaluate(create(), data, with_masks=False).damaged == []
    data = InMemory(noise_images([(SIZE, SIZE)] * 2), [0, 1], [data.masks[0], np.ones((SIZE, SIZE), dtype=bool)])
    result = evaluate(create(), data, skip_damaged=True)
    assert result.damaged == ["0"] and [row["name"] for row in result.rows] == ["1"]


def test_all_ones_by_hand():
    quarter = np.zeros((8, 8), dtype=bool)
    quarter[:4, :4] = True
    data = InMemory(noise_images([(8, 8)] * 3), [0, 1, 0], [quarter, np.ones((8, 8), dtype=bool), None])
    metrics = evaluate_all_ones(data)
    # 2 * 16 / (64 + 16) and 1; the background is missed in the first image and empty in the second.
    assert metrics["f1_foreground"] == pytest.approx((0.4 + 1) / 2) and metrics["f1_background"] == 0.5
    assert metrics["pxap"] == pytest.approx(80 / 128) and metrics["mask_area"] == 1 and "error" not in metrics


def test_preprocess_for():
    model = create(data_config=dict(mean=(0.1, 0.2, 0.3)))
    preprocess = preprocess_for(model)
    assert preprocess.mean == (0.1, 0.2, 0.3) and preprocess.short_side == SIZE and preprocess.multiple == 32
    assert preprocess_for(model, 100).short_side == 100
    assert preprocess.interpolation == model.backbone.data_config["interpolation"]
    assert preprocess_for(create(data_config=dict(interpolation="lanczos"))).interpolation == "lanczos"
    for model in (create(preset="reference"), create(data_config=dict(resize="reference", interpolation="bicubic"))):
        assert preprocess_for(model).interpolation == "bilinear"  # as the authors' implementation
    model.backbone.sizes = ImageSizes(32, fixed=(48, 80))
    assert preprocess_for(model)(Image.new("RGB", (7, 5))).shape == (3, 48, 80)


def test_predictions_of_one_channel():
    model = create(in_chans=1)
    predictions = list(predict_images(model, enumerate(noise_images([(40, 50), (33, 33)]))))
    assert [prediction.mask.shape for prediction in predictions] == [(40, 50), (33, 33)]


def test_prediction_that_is_left_early_restores_the_mode():
    model = create().train()
    predictions = predict_images(model, enumerate(noise_images([(SIZE, SIZE)] * 3)), batch_size=1)
    next(predictions)
    predictions.close()
    assert model.training


# Files


def test_predict_files(tmp_path, files):
    model = create().eval()
    model.class_names = ["first", "second"]
    results = list(predict_files(mme.Predictor(model), [record.image for record in files.records], tmp_path / "out"))
    assert ["error" in result for result in results] == [False, False, True, False, False, True]
    assert set(results[2]) == {"image", "error"} and "2.png can't be read" in results[2]["error"]
    for index, result in enumerate(results):
        assert result["image"] == files.name(index)
        if "error" in result:
            continue
        assert result["class"] in model.class_names and 0.5 <= result["probability"] <= 1
        mask = np.asarray(Image.open(result["mask"]))
        assert mask.shape == (SIZE, SIZE) and set(np.unique(mask)) <= {0, 255}
        assert result["share"] == pytest.approx((mask == 255).mean(), abs=1e-4)
        for x0, y0, x1, y1 in result["boxes"]:
            assert (mask[y0:y1, x0:x1] == 255).any()
        assert Image.open(result["overlay"]).size == (SIZE, SIZE)


def test_predict_files_without_output_or_class_names(files):
    model = create()
    result = next(iter(predict_files(mme.Predictor(model), [files.records[0].image])))
    assert result["class"] in (0, 1) and "mask" not in result


def test_names_of_outputs_are_unique(tmp_path):
    """The same stem in several folders and with several suffixes, and stems that look like the numbered ones."""
    paths = []
    for name in ("a/x_2.png", "a/x.png", "a/x.jpg", "b/x.png", "a/x.bmp", "a/x.gif", "b/x.gif", "b/x_1.png"):
        paths.append(tmp_path / name)
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(paths[-1])
    results = list(predict_files(mme.Predictor(create()), [*paths, paths[0]], tmp_path / "out"))
    assert len({result["mask"] for result in results}) == len(results) == 9
    assert results[1]["mask"] == str(tmp_path / "out" / "x_mask.png")
    assert results[3]["mask"] == str(tmp_path / "out" / "b_x_mask.png")


def test_expand_paths(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.tif", "notes.txt", ".hidden.png", "deep/.cache/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = expand_paths([tmp_path, "none.txt"])
    assert [str(path.relative_to(tmp_path)) for path in found[:-1]] == ["a.JPG", "b.png", "deep/c.tif"]
    assert str(found[-1]) == "none.txt"


def test_outputs_of_an_earlier_run_are_no_images(tmp_path):
    """Within the output folder alone: elsewhere such names are a user's own."""
    for name in ("a.png", "b_mask.png", "out/a_overlay.png", "out/a_mask.png", "out/c.png", "out/deep/d_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = expand_paths([tmp_path], tmp_path / "out")
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a.png",
        "b_mask.png",
        "out/c.png",
        "out/deep/d_mask.png",
    ]
    assert len(expand_paths([tmp_path])) == 6
    assert expand_paths([tmp_path / "out" / "a_mask.png"], tmp_path / "out") == [tmp_path / "out" / "a_mask.png"]


# Pictures and tables


def test_overlay():
    mask = np.zeros((6, 8))
    mask[1:5, 2:7] = 0.5  # at the threshold: inside
    pixels = np.asarray(overlay(Image.new("RGB", (8, 6), (100, 100, 100)), mask)).astype(int)
    assert pixels[0, 0].tolist() == [int(100 * pictures.OUTSIDE_BRIGHTNESS)] * 3
    assert pixels[1, 2].tolist() == pixels[4, 6].tolist() == list(pictures.OUTLINE)
    tint = [100 + (value - 100) * pictures.TINT_STRENGTH for value in pictures.TINT]
    assert pixels[2, 3] == pytest.approx(tint, abs=1)


def test_mask_picture():
    mask = np.array([[0.0, 0.5, 1.0]])
    assert np.asarray(mask_picture(mask)).tolist() == [[0, 128, 255]]
    assert np.asarray(mask_picture(mask, 0.5)).tolist() == [[0, 255, 255]]
    assert np.asarray(mask_picture(mask > 0.2)).tolist() == [[0, 255, 255]]


def test_grid_and_save(tmp_path):
    rows = [[Image.new("RGB", (10, 30), "red"), Image.new("L", (300, 2))]] * 3
    picture = grid(rows, ["one", "two"], [["a", "b"]] * 3, cell=50)
    assert picture.width == 2 * 56 + 6 and picture.height > 3 * 50
    assert (np.asarray(picture) == (255, 0, 0)).all(axis=2).sum() >= 3 * 15 * 45  # fitted to the cell, not cut
    save_picture(picture, tmp_path / "deep" / "grid.png")
    assert Image.open(tmp_path / "deep" / "grid.png").size == picture.size
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["grid.png"]  # nothing temporary is left


def test_long_headers_take_lines():
    """And no ink of one reaches into the next column."""
    white, long = Image.new("RGB", (50, 50), "white"), "several words are more than one line holds"
    short = grid([[white, white]], ["a", "a"], cell=50)
    picture = grid([[white, white]], [long, ""], cell=50)
    assert picture.height > short.height + 3 * 14
    assert (np.asarray(picture)[:, 6 + 50 + 6 :] == 255).all() and (np.asarray(picture) < 255).any()


def test_metrics_table():
    rows = {"all": {"f1_foreground": 0.5}, "ours": {"error": 0.0123, "f1_foreground": 1.0, "epochs": 7}}
    assert metrics_table(rows, extra=["epochs"]).splitlines() == [
        "| method | error % | F1+ % | epochs |",
        "| ------ | ------: | ----: | -----: |",
        "| all    |       - |  50.0 |      - |",
        "| ours   |     1.2 | 100.0 |      7 |",
    ]


def test_ranked_cases_and_case_grid(various):
    model = create()
    masked = InMemory(various.images[3:], various.targets[3:], various.masks[3:])
    result = evaluate(model, masked)
    scores = [row["f1_foreground"] for row in result.rows]
    assert [scores[index] for index in ranked_cases(result)] == sorted(scores)
    without = evaluate(model, masked, with_masks=False)
    ranked = [without.rows[index] for index in ranked_cases(without)]
    correct = [row["predicted"] == row["target"] for row in ranked]
    assert correct == sorted(correct)  # wrong classes first, the surest of them at the top
    assert [row["probability"] for row in ranked if row["predicted"] == row["target"]] == sorted(
        row["probability"] for row in ranked if row["predicted"] == row["target"]
    )
    wrong = [row["probability"] for row in ranked if row["predicted"] != row["target"]]
    assert wrong == sorted(wrong, reverse=True)
    picture = case_grid({"ours": model, "again": model}, various, [2, 0], cell=60)
    assert picture.width == 4 * 66 + 6


@pytest.mark.parametrize("preset", ["reference", "area", "cam"])
def test_evaluation_does_not_depend_on_the_batch(preset, shapes):
    model = create(preset=preset)
    one, many = (evaluate(model, shapes, batch_size=size) for size in (1, 8))
    assert one.metrics == pytest.approx(many.metrics, abs=1e-4)


def test_other_tasks_are_refused(shapes):
    model = create(task="multilabel")
    with pytest.raises(ValueError, match='one class an image is expected here, the model has task="multilabel"'):
        fit(model, shapes, Recipe(), 1)
    with pytest.raises(ValueError, match="one class an image is expected here"):
        evaluate(model, shapes)
