"""The command line: train, evaluate, predict, list and demo, with inputs that are right, odd, damaged and wrong."""

import contextlib
import csv
import importlib.metadata
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy import cli
from minmax_entropy.cli import demo
from minmax_entropy.cli.demo import run_demo
from minmax_entropy.data import SyntheticShapes
from minmax_entropy.engine import TrainingResult
from minmax_entropy.engine.evaluate import MEANS
from minmax_entropy.engine.faithfulness import PROBED

SIZE = 48
IMAGES = 32
SMALL = ("--model", "wsl_test_resnet", "--size", SIZE, "--epochs", 1, "--batch-size", 8)


def run(*arguments):
    """Exit status of a command."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse's own errors
        return end.code


def fails(capsys, *arguments):
    """The one line that a command with a wrong input ends with."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.replace("\r", "\n").splitlines()
    assert lines[-1].startswith(f"minmax-entropy {arguments[0]}: ")
    assert sum(line.startswith("minmax-entropy") for line in lines) == 1
    return lines[-1]


def make_data(root, mask_of=lambda index: True):
    """`images/<class>/*.png`, half of them of each class, with masks; 20 to train, 4 to validate, 8 to test."""
    data = SyntheticShapes(length=IMAGES, size=SIZE, num_classes=2)
    for index in range(IMAGES):
        place = f"{data.class_names[data.target(index)]}/{index:02d}.png"
        pictures = {"images": data.image(index)}
        if mask_of(index):
            pictures["masks"] = Image.fromarray(data.mask(index))
        for folder, picture in pictures.items():
            (root / folder / place).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / place)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Folder of a training, and what it printed."""
    output, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert run("train", "--data", data, *SMALL, "--output", output) == 0
    return output, printed.getvalue()


@pytest.fixture
def model(trained):
    return trained[0] / "model"


# Train


def test_train(trained, data):
    output, printed = trained
    assert "20 images of 2 classes to train, 4 to validate" in printed
    assert "kept epoch 0 with a validation" in printed
    assert f"next: minmax-entropy evaluate --model {output / 'model'} --data {data}" in printed
    with (output / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and rows[0]["images"] == "16" and math.isfinite(float(rows[0]["loss"]))
    model = mme.create_model(f"local-dir:{output / 'model'}")
    assert model.class_names == ["columns", "rows"] and model.num_classes == 2
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["metrics"]["valid_error"] == pytest.approx(float(rows[0]["valid_error"]))
    assert config["model"]["size_loss"] == "area"  # the default preset


@pytest.fixture
def fit_arguments(monkeypatch):
    """What `train` hands to `fit`, which is left out."""
    given = {}

    def fake(model, train, recipe, epochs, **keywords):
        given.update(keywords, model=model, train=train, epochs=epochs, recipe=recipe)
        return TrainingResult([{"valid_error": 0.5}], 0, None, ["x.png"], 1.0)

    monkeypatch.setattr(cli.training, "fit", fake)
    return given


def test_options_reach_the_training(data, tmp_path, fit_arguments, capsys):
    options = ("--lr", 0.125, "--erasing-steps", 3, "--seed", 7, "--recipe", "scratch", "--preset", "reference")
    settings = ("--set", "mask_omega=5", "--set", "detach_mask=false", "--set", 'localizer={"name": "lse", "r": 4}')
    order = ("--classes", "rows", "columns", "--skip-damaged", "--output", tmp_path)
    assert run("train", "--data", data, *SMALL, *options, *settings, *order) == 0
    recipe, model = fit_arguments["recipe"], fit_arguments["model"]
    assert (recipe.lr, recipe.batch_size, recipe.erasing_steps, recipe.optimizer) == (0.125, 8, 3, "adamw")
    assert fit_arguments["epochs"] == 1 and fit_arguments["seed"] == 7 and fit_arguments["skip_damaged"]
    assert model.mask_omega == 5.0 and not model.detach_mask and model.config["localizer"] == {"name": "lse", "r": 4}
    assert model.mask_normalization == "batch"  # of the preset
    assert fit_arguments["train"].class_names == fit_arguments["valid"].class_names == ["rows", "columns"]
    assert fit_arguments["size"] == SIZE and not fit_arguments["resume"]
    assert "skipped 1 damaged files: x.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("classifier=null", None),
        ("classifier=None", None),
        ("classifier_scale=[40, 50]", [40, 50]),
        ("classifier_scale=(40, 50)", (40, 50)),
        ("checkpoint_passes=true", True),
        ("checkpoint_passes=True", True),
        ("background_loss=eem", "eem"),
        ("background_loss='eem'", "eem"),
    ],
)
def test_settings_may_be_json_python_or_text(data, tmp_path, fit_arguments, setting, value):
    assert run("train", "--data", data, *SMALL, "--output", tmp_path, "--set", setting) == 0
    assert fit_arguments["model"].config[setting.split("=")[0]] == value


def test_validation_indexes_classes_as_training_does(tmp_path, fit_arguments):
    """A class that has no validation images does not move the others."""
    for place in ("train/a", "train/b", "train/c", "valid/c"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / place / "0.png")
    assert run("train", "--data", tmp_path, *SMALL, "--output", tmp_path / "out") == 0
    assert fit_arguments["valid"].target(0) == 2 and fit_arguments["valid"].class_names == ["a", "b", "c"]


def test_class_that_is_known_to_the_validation_alone(tmp_path, capsys):
    for place in ("train/a", "train/b", "valid/a", "valid/c"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / place / "0.png")
    assert "class 'c' of " in fails(capsys, "train", "--data", tmp_path, *SMALL, "--output", tmp_path / "out")


def test_train_again_into_the_same_folder(data, tmp_path):
    for epochs in (2, 1):
        assert (
            run(
                "train",
                "--data",
                data,
                *SMALL,
                "--epochs",
                epochs,
                "--output",
                tmp_path,
                "--preset",
                "cam",
                "--overwrite",
            )
            == 0
        )
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    assert mme.create_model(f"local-dir:{tmp_path / 'model'}").classifier is None


def test_train_with_erasing_and_loader_processes(data, tmp_path):
    options = ("--erasing-steps", 2, "--workers", 2, "--epochs", 2)
    assert run("train", "--data", data, *SMALL, *options, "--output", tmp_path) == 0
    assert mme.create_model(f"local-dir:{tmp_path / 'model'}").erasing.steps == 0


def test_a_folder_of_something_else_is_refused_before_the_training(data, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("years of work")
    line = fails(capsys, "train", "--data", data, *SMALL, "--output", tmp_path)
    assert "model is not empty and not a saved model" in line and not (tmp_path / "log.csv").exists()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thesis.tex"]


# Evaluate


def test_evaluate(model, data, tmp_path, capsys):
    assert run("evaluate", "--model", model, "--data", data, "--output", tmp_path / "deep" / "out") == 0
    printed = capsys.readouterr().out
    tables = [part.splitlines() for part in printed.split("\n\n")]
    table, found, classes = ([line for line in lines if line.startswith("|")] for lines in tables)
    heading = "| method | error % | F1+ % | F1- % | PxAP % | pIoU % | max pIoU % | M+ % | border % | true border % |"
    assert table[0].split() == heading.split()
    assert [line.split()[1] for line in table[2:]] == ["all-ones", "model"]
    assert found[0].split() == "| method | own: image % | own: X+ % | own: swapped % |".split()
    names = [line.split()[1] for line in classes[2:]]
    assert len(names) == 2 and classes[0].split()[-2] == "images"
    out = tmp_path / "deep" / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    pixels = {"f1_foreground", "f1_background", "pxap", "piou", "max_piou", "max_piou_threshold"}
    assert set(metrics) == {"error", *pixels, "mask_area", *MEANS[:2], *PROBED[:3]}
    assert all(0 <= value <= 1 for value in metrics.values())
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["target"] for row in rows} == {"0", "1"}
    assert np.mean([float(row["f1_foreground"]) for row in rows]) == pytest.approx(metrics["f1_foreground"])
    assert np.mean([row["target"] != row["predicted"] for row in rows]) == metrics["error"]
    with (out / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names and [row["images"] for row in rows] == ["4", "4"]
    for name in ("worst.png", "median.png", "best.png", "classes.png"):
        assert Image.open(out / name).width > 3 * 160


def test_evaluate_with_a_judge(model, data, tmp_path, capsys):
    judge = mme.create_model("wsl_test_resnet", num_classes=2, preset="cam", img_size=SIZE)
    judge.save_pretrained(tmp_path / "plain", class_names=mme.create_model(f"local-dir:{model}").class_names)
    asked = "evaluate", "--model", model, "--data", data, "--judge"
    assert run(*asked, tmp_path / "plain", "--rival", "layer_cam", "--curves", 2) == 0
    printed = capsys.readouterr().out
    assert "judge: X- %" in printed and "rival: X+ %" in printed and "insertion %" in printed
    assert "The judge is plain." in printed
    assert "a judge must never have met a mask" in fails(capsys, *asked, model)
    assert "--rival and --curves need a --judge" in fails(capsys, *asked[:-1], "--curves", 2)


def test_evaluate_other_parts_and_sizes(model, data, tmp_path):
    areas = []
    for options in ((), ("--split", "train"), ("--split", "valid"), ("--size", 80), ("--size", SIZE)):
        source = f"local-dir:{model}"
        assert run("evaluate", "--model", source, "--data", data, "--output", tmp_path, *options) == 0
        areas.append(json.loads((tmp_path / "metrics.json").read_text())["mask_area"])
    assert len(set(areas[:4])) == 4 and areas[4] == areas[0]  # by default the size of the training


def test_evaluate_a_model_without_class_names(model, data, tmp_path, capsys):
    nameless = mme.create_model(f"local-dir:{model}")
    nameless.class_names = None
    nameless.save_pretrained(tmp_path / "two")
    assert run("evaluate", "--model", tmp_path / "two", "--data", data, "--output", tmp_path / "out") == 0
    nameless.reset_classifier(5)
    nameless.save_pretrained(tmp_path / "five")
    line = fails(capsys, "evaluate", "--model", tmp_path / "five", "--data", data, "--output", tmp_path / "out")
    assert "five has 5 classes and no names of them, " in line and line.endswith("has 2 for test")


def test_figures_that_are_not_finite_are_null(model, tmp_path):
    data = make_data(tmp_path)
    for path in (data / "masks").rglob("*.png"):
        Image.new("L", (SIZE, SIZE)).save(path)
    assert run("evaluate", "--model", model, "--data", data, "--output", tmp_path / "out") == 0
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert json.loads(text)["pxap"] is None and "NaN" not in text


@pytest.mark.parametrize("masked", [lambda index: False, lambda index: index % 3 == 0], ids=["none", "some"])
def test_evaluate_with_few_masks(model, tmp_path, capsys, masked):
    data = make_data(tmp_path / "data", masked)
    assert run("evaluate", "--model", model, "--data", data, "--output", tmp_path / "out") == 0
    has_masks = "F1+" in capsys.readouterr().out
    assert has_masks == masked(0)
    assert ("f1_foreground" in json.loads((tmp_path / "out" / "metrics.json").read_text())) == has_masks
    assert (tmp_path / "out" / "worst.png").is_file()


def test_evaluate_a_part_without_one_of_the_classes(model, data, tmp_path):
    (tmp_path / "test" / "rows").mkdir(parents=True)
    Image.open(data / "images" / "rows" / "00.png").save(tmp_path / "test" / "rows" / "0.png")
    assert run("evaluate", "--model", model, "--data", tmp_path, "--output", tmp_path / "out") == 0
    with (tmp_path / "out" / "images.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["target"] == "1"


def test_damaged_images_of_a_data_set(tmp_path, capsys):
    """Named with status 2, or skipped and counted on request, in training and evaluation."""
    data = make_data(tmp_path / "data")
    for path in sorted((data / "images" / "rows").iterdir())[:8]:
        path.write_bytes(path.read_bytes()[:200])
    common = ("--data", data, *SMALL, "--output", tmp_path / "out")
    assert "can't be read as an image" in fails(capsys, "train", *common)
    assert run("train", *common, "--skip-damaged") == 0
    assert "damaged files: " in capsys.readouterr().out
    evaluation = ("evaluate", "--model", tmp_path / "out" / "model", "--data", data)
    assert ".png can't be read as an image" in fails(capsys, *evaluation)
    assert run(*evaluation, "--skip-damaged", "--output", tmp_path / "figures") == 0
    skipped = int(capsys.readouterr().out.split("skipped ")[1].split()[0])
    assert skipped >= 1 and len((tmp_path / "figures" / "images.csv").read_text().splitlines()) == 1 + 8 - skipped


def test_mask_of_another_size(model, tmp_path, capsys):
    data = make_data(tmp_path)
    for path in (data / "masks" / "rows").iterdir():
        Image.open(path).resize((20, 30)).save(path)
    line = fails(capsys, "evaluate", "--model", model, "--data", data)
    assert "rows" in line and "is 30 x 20, the image is 48 x 48" in line


# Predict


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_prediction(result, size):
    """A line of `predict`, and its files."""
    assert list(result) == ["image", "class", "probability", "boxes", "share", "overlay", "mask"]
    assert result["class"] in ("columns", "rows") and 0.5 <= result["probability"] <= 1
    mask = Image.open(result["mask"])
    assert mask.mode == "L" and mask.size == size and Image.open(result["overlay"]).size == size
    values = np.asarray(mask)
    assert set(np.unique(values)) <= {0, 255} and result["share"] == pytest.approx((values > 0).mean(), abs=1e-4)
    assert bool(result["boxes"]) == (values > 0).any()
    covered = np.zeros_like(values, dtype=bool)
    for x0, y0, x1, y1 in result["boxes"]:
        covered[y0:y1, x0:x1] = True
    assert (values > 0)[~covered].sum() < 0.01 * values.size  # but for specks


def test_predict_a_folder(model, data, tmp_path, capsys):
    assert run("predict", data / "images" / "rows", "--model", model, "--output", tmp_path) == 0
    results = lines_of(capsys)
    assert [result["image"] for result in results] == sorted(map(str, (data / "images" / "rows").iterdir()))
    for result in results:
        check_prediction(result, (SIZE, SIZE))
    assert len(list(tmp_path.iterdir())) == 2 * len(results) == IMAGES


def test_predict_a_folder_again(model, data, tmp_path, capsys):
    """Its own output, written into the folder of the images, is not taken for images."""
    for index, path in enumerate(sorted((data / "images" / "rows").iterdir())[:2]):
        Image.open(path).save(tmp_path / f"{index}.png")
    for _ in range(2):
        assert run("predict", tmp_path, "--model", model, "--output", tmp_path / "out") == 0
        assert [result["image"] for result in lines_of(capsys)] == [str(tmp_path / f"{i}.png") for i in range(2)]


def test_options_of_a_prediction(model, data, tmp_path, capsys):
    (tmp_path / "plugin.py").write_text(REFINEMENT)
    Image.open(data / "images" / "rows" / "00.png").resize((150, 90)).save(tmp_path / "a.png")
    common = ("predict", tmp_path / "a.png", "--model", model, "--output", tmp_path / "out")
    plain = ("--plugin", tmp_path / "plugin.py", "--refine", "constant")
    assert run(*common, "--size", 96, "--tile", 64, "--overlap", 32, "--flips", "horizontal,both") == 0
    check_prediction(lines_of(capsys)[0], (150, 90))
    value = ("--refine-set", "value=0.4")
    for options, share in (((), 1.0), ((*value, "--scales", "0.75,1"), 0.0), ((*value, "--threshold", 0.3), 1.0)):
        assert run(*common, *plain, *options) == 0
        assert lines_of(capsys)[0]["share"] == share
    assert run(*common, "--max-pixels", 1000) == 1
    assert "has more than 1,000 pixels" in lines_of(capsys)[0]["error"]


REFINEMENT = """
import numpy as np
from minmax_entropy.engine import register_refinement

@register_refinement
def constant(value=0.6):
    return lambda image, mask: np.full_like(mask, value)
"""


def test_choose_a_threshold(model, data, tmp_path, capsys):
    """Chosen on the validation images, stored with the model, and used from then on."""
    own, out = tmp_path / "model", tmp_path / "deep" / "out"
    mme.create_model(f"local-dir:{model}").save_pretrained(own)
    assert run("evaluate", "--model", own, "--data", data, "--choose-threshold", "--output", out) == 0
    printed = capsys.readouterr().out
    chosen = mme.create_model(f"local-dir:{own}").mask_threshold
    assert f"threshold {chosen:g} instead of 0.5: F1+ " in printed and "on 4 images of valid" in printed
    best = float(printed.split(": F1+ ")[1].split(" %")[0])
    assert run("evaluate", "--model", own, "--data", data, "--split", "valid") == 0
    row = next(line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| model"))
    assert float(row[3]) == best
    with (out / "thresholds.csv").open(newline="") as file:
        curve = {float(row["threshold"]): float(row["f1_foreground"]) for row in csv.DictReader(file)}
    assert len(curve) == 99 and curve[chosen] == max(curve.values()) == pytest.approx(best / 100, abs=6e-4)
    assert [path.name for path in out.iterdir()] == ["thresholds.csv"]


def test_choose_the_least_probability(model, data, tmp_path, capsys):
    """Chosen by labels alone, stored with the model; what lies under it is answered with nothing."""
    own, command = tmp_path / "model", ("evaluate", "--data", data, "--choose-min-probability", "0.6", "--model")
    mme.create_model(f"local-dir:{model}").save_pretrained(own)
    assert run(*command, own) == 0
    least = mme.create_model(f"local-dir:{own}").min_probability
    assert f"nothing below a probability of {least:g}, by 4 images of valid; stored in" in capsys.readouterr().out
    assert run("predict", *sorted((data / "images").glob("*/*.png")), "--model", own, "--output", tmp_path / "out") == 0
    lines = lines_of(capsys)
    assert {line["class"] is None for line in lines} == {True, False}
    for line in lines:
        assert (line["class"] is None) == (line["share"] == 0)
    assert run("evaluate", "--data", data, "--model", own, "--split", "valid") == 0
    assert f"1 of 4 images are below min_probability {least:g}" in capsys.readouterr().out
    for option in (["--choose-threshold"], ["--output", tmp_path / "other"]):
        assert run(*command, own, *option) == 2
        assert "writes no --output, and goes before or after" in capsys.readouterr().err
    assert run(*command, own, "--judge", own) == 2
    assert "--judge, --rival and --curves can't be combined with --choose-..." in capsys.readouterr().err


def test_choose_a_threshold_without_damaged_files(model, tmp_path, capsys):
    data, own = make_data(tmp_path / "data"), tmp_path / "model"
    mme.create_model(f"local-dir:{model}").save_pretrained(own)
    first = sorted((data / "images" / "rows").iterdir())[0]
    first.write_bytes(first.read_bytes()[:200])
    command = ("evaluate", "--model", own, "--data", data, "--choose-threshold", "--split", "train")
    splits = [run(*command[:-1], split, "--skip-damaged") for split in ("train", "valid", "test")]
    assert splits == [0, 0, 0] and capsys.readouterr().out.count(f"skipped 1 damaged files: {first}") == 1


def test_images_at_their_own_size(model, data, tmp_path, capsys, monkeypatch):
    image = tmp_path / "a.png"
    Image.open(data / "images" / "rows" / "00.png").resize((150, 90)).save(image)
    seen = []
    class_maps = mme.WSLModel.class_maps

    def spy(self, images):
        seen.append(tuple(images.shape[2:]))
        return class_maps(self, images)

    monkeypatch.setattr(mme.WSLModel, "class_maps", spy)
    common = ("predict", image, "--model", model, "--scales", "1", "--output", tmp_path / "out")
    for size, expected in (((), (64, 96)), (("--size", 100), (128, 192)), (("--size", "native"), (96, 160))):
        assert run(*common, *size) == 0
        assert seen.pop() == expected
    assert run("evaluate", "--model", model, "--data", data, "--size", "native", "--scales", "1") == 0
    assert set(seen) == {(64, 64)}


def test_own_size_of_a_model_for_one_size(data, tmp_path, capsys):
    model = mme.create_model("wsl_test_vit", num_classes=2, img_size=64, backbone_kwargs=dict(dynamic_img_size=False))
    assert model.backbone.sizes.fixed == (64, 64)
    model.save_pretrained(tmp_path / "model")
    common = ("predict", data / "images" / "rows" / "00.png", "--model", tmp_path / "model", "--output", tmp_path)
    line = fails(capsys, *common, "--size", "native")
    assert "this backbone takes images of 64 x 64 only" in line and "(--tile)" in line
    assert run(*common, "--size", "native", "--tile", 64) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "1"), "argument --threshold: expected a number over 0 and below 1, got '1'"),
        (("--tile", "50"), "tiles of this backbone are multiples of 32 pixels, got 50; try 64"),
        (("--tile", "64", "--overlap", "50"), "is 32 (one position of the features) to 32 pixels, got 50"),
        (("--overlap", "32"), "--overlap is that of tiles: give --tile PIXELS with it"),
        (("--size", "0"), "argument --size: expected a number of 1 or more, got '0'; or native: the images' own size"),
        (("--flips", "diagonal"), "expected any of horizontal,vertical,both, got 'diagonal'"),
        (("--scales", "1,big"), "argument --scales: expected numbers such as 0.75,1,1.25, got '1,big'"),
        (("--scales", "0"), "scales are numbers over 0"),
        (("--refine", "sharpen"), "unknown refinement 'sharpen'"),
        (("--refine-set", "radius=1"), "--refine-set gives options of --refine NAME"),
        (("--max-pixels", "0"), "argument --max-pixels: expected a number of 1 or more, got '0'"),
    ],
)
def test_bad_options_of_a_prediction(model, data, capsys, arguments, message):
    image = data / "images" / "rows" / "00.png"
    assert message in fails_anyhow(capsys, "predict", image, "--model", model, *arguments)


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 90), "green").save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "make", "size"),
    [
        ("grey.png", lambda path: Image.new("L", (70, 50), 99).save(path), (70, 50)),
        ("rgba.png", lambda path: Image.new("RGBA", (33, 47), (9, 200, 30, 80)).save(path), (33, 47)),
        ("photograph.jpg", rotated, (90, 60)),
        ("palette.gif", lambda path: Image.new("P", (40, 40)).save(path), (40, 40)),
        ("wide.tif", lambda path: Image.fromarray(np.full((40, 64), 40000, np.uint16)).save(path), (64, 40)),
        ("cmyk.jpg", lambda path: Image.new("CMYK", (51, 49)).save(path), (51, 49)),
        ("tiny.png", lambda path: Image.new("RGB", (1, 1)).save(path), (1, 1)),
        ("strip.png", lambda path: Image.new("RGB", (200, 3)).save(path), (200, 3)),
        ("UPPER.JPG", lambda path: Image.new("RGB", (48, 31)).save(path), (48, 31)),
        ("name with spaces, ümläut.png", lambda path: Image.new("RGB", (48, 31)).save(path), (48, 31)),
    ],
)
def test_predict_odd_images(model, tmp_path, capsys, name, make, size):
    make(tmp_path / name)
    assert run("predict", tmp_path / name, "--model", model, "--output", tmp_path / "out") == 0
    (result,) = lines_of(capsys)
    assert result["image"] == str(tmp_path / name)
    check_prediction(result, size)


def test_a_damaged_image_among_others(model, data, tmp_path, capsys):
    good = data / "images" / "rows" / "00.png"
    for name, content in (("cut.png", good.read_bytes()[:300]), ("empty.jpg", b""), ("text.png", b"hello")):
        (tmp_path / name).write_bytes(content)
    paths = (tmp_path / "cut.png", good, tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "none.png", good)
    assert run("predict", *paths, "--model", model, "--output", tmp_path / "out") == 1
    results = lines_of(capsys)
    assert [result["image"] for result in results] == list(map(str, paths))
    assert ["error" in result for result in results] == [True, False, True, True, True, False]
    for result in results:
        if "error" in result:
            assert list(result) == ["image", "error"] and result["image"] in result["error"]
        else:
            check_prediction(result, (SIZE, SIZE))
    assert results[1]["mask"] != results[5]["mask"]


# Wrong inputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "none"), "no folder none"),
        (("--model", "wsl_resnet5O"), "unknown model 'wsl_resnet5O'; did you mean wsl_resnet50"),
        (("--model", "resnet18"), "did you mean wsl_resnet18"),
        (("--set", "mask_sigmaa=0.5"), "unknown keyword 'mask_sigmaa'; did you mean mask_sigma"),
        (("--set", "mask_sigma=2"), "mask_sigma is a threshold on a map in [0, 1], got 2"),
        (("--set", "localizer=wildcart"), "unknown head 'wildcart'; did you mean wildcat"),
        (("--set", "num_classes=3"), "num_classes"),
        (("--set", "in_chans=4"), "in_chans must be 3 or 1, got 4"),
        (("--set", "erasing_steps=2"), "give --erasing-steps (on from the second epoch) instead of --set"),
        (("--set", "mask_sigma"), "expected NAME=VALUE, got 'mask_sigma'"),
        (("--preset", "area51"), "argument --preset: invalid choice: 'area51'"),
        (("--recipe", "cake"), "argument --recipe: invalid choice: 'cake'"),
        (("--lr", "0"), "lr must be over 0, got 0.0"),
        (("--lr", "-1"), "lr must be over 0, got -1.0"),
        (("--lr", "high"), "argument --lr: invalid float value: 'high'"),
        (("--epochs", "0"), "argument --epochs: expected a number of 1 or more, got '0'"),
        (("--epochs", "1.5"), "argument --epochs: expected a number of 1 or more, got '1.5'"),
        (("--batch-size", "0"), "argument --batch-size: expected a number of 1 or more, got '0'"),
        (("--size", "-5"), "argument --size: expected a number of 1 or more, got '-5'"),
        (("--size", "16"), "can't be built for img_size=(16, 16); the nearest size that works is (32, 32)"),
        (("--seed", "-1"), "argument --seed: expected a number of 0 or more, got '-1'"),
        (("--erasing-steps", "-1"), "erasing_steps must be 0 or more, got -1"),
        (("--workers", "-1"), "workers must be 0 or more, got -1"),
        (("--device", "gpu"), "device 'gpu': "),
        (("--device", "cuda:99"), "device 'cuda:99': "),
        (("--plugin", "none.py"), "none.py"),
        (("--classes", "rows"), "all images are of class 'rows', two or more are needed"),
        (("--classes", "rows", "cows"), "has no images of class 'cows' for train; its classes: ['columns', 'rows']"),
        (("--classes", "rows", "columns", "rows"), "a class is named twice"),
        (("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_bad_training(data, tmp_path, capsys, arguments, message):
    line = fails_anyhow(capsys, "train", "--data", data, *SMALL, "--output", tmp_path / "out", *arguments)
    assert message in line
    assert not (tmp_path / "out" / "model").exists()


def fails_anyhow(capsys, *arguments):
    """As `fails`; where argparse prints the usage before it, the program's name alone may begin the line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    line = captured.err.replace("\r", "\n").splitlines()[-1]
    assert line.startswith("minmax-entropy")
    return line


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no class folders: expected "),
        (["a.png", "b.png"], "has no class folders: expected "),
        (["a/1.txt"], "holds no images"),
        ([f"all/{index}.png" for index in range(9)], "all images are of class 'all'"),
        (["train/a/1.png", "train/b/1.png"], "too few images a class to hold out a 'valid' part"),
        (["a/1.png", "b/1.png"], "too few images a class to hold out a 'valid' part"),
    ],
)
def test_bad_data(tmp_path, capsys, files, message):
    root = tmp_path / "data"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(root / name, format="PNG")
    assert message in fails(capsys, "train", "--data", root, *SMALL, "--output", tmp_path / "out")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json is missing"),
        ({}, "config.json is missing"),
        ({"config.json": "{"}, "is not valid JSON"),
        ({"config.json": '{"architecture": "resnet50"}'}, "is not a configuration of minmax_entropy"),
        ("weights", "no weights at"),
        ("damaged weights", "can't be read as weights"),
    ],
)
def test_bad_model_folder(model, data, tmp_path, capsys, command, content, message):
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
    if isinstance(content, str):
        (folder / "config.json").write_text((model / "config.json").read_text())
    if content == "damaged weights":
        (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    for name, text in content.items() if isinstance(content, dict) else ():
        (folder / name).write_text(text)
    inputs = ("--data", data) if command == "evaluate" else (data / "images",)
    assert message in fails(capsys, command, *inputs, "--model", folder)


def test_wrong_paths(model, data, tmp_path, capsys):
    assert "no folder " in fails(capsys, "evaluate", "--model", model, "--data", tmp_path / "none")
    assert f"no image files in {tmp_path}" in fails(capsys, "predict", tmp_path, "--model", model)
    (tmp_path / "file").write_text("")
    image = data / "images" / "rows" / "00.png"
    for output in (tmp_path / "file", tmp_path / "file" / "deep"):
        assert "file" in fails(capsys, "predict", image, "--model", model, "--output", output)
        assert "file" in fails(capsys, "evaluate", "--data", data, "--model", model, "--output", output)
        assert "file" in fails(capsys, "train", "--data", data, *SMALL, "--output", output)


def test_data_of_other_classes(model, tmp_path, capsys):
    for place in ("test/cat", "test/dog"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / place / "0.png")
    line = fails(capsys, "evaluate", "--model", model, "--data", tmp_path)
    assert "has no images of class 'columns' for test; its classes: ['cat', 'dog']" in line


def test_interruption(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.models, "_list", interrupt)
    assert run("list") == 130 and capsys.readouterr().err == "interrupted\n"


# Plugins


PLUGIN = """
import torch
from minmax_entropy import register_backbone

@register_backbone
def {name}(pretrained=False, in_chans=3, **keywords):
    layers = torch.nn.Conv2d(in_chans, 8, 3, stride=4, padding=1), torch.nn.ReLU()
    return torch.nn.Sequential(*layers)
"""


def test_plugin_registers_a_backbone(data, tmp_path, capsys):
    (tmp_path / "plugin.py").write_text(PLUGIN.format(name="plain_convolution"))
    plugin = ("--plugin", tmp_path / "plugin.py")
    options = ("--data", data, *SMALL, "--model", "wsl_plain_convolution", "--output", tmp_path / "out")
    assert "unknown model 'wsl_plain_convolution'" in fails(capsys, "train", *options)
    for _ in range(2):  # the same plugin twice is no clash
        assert run("train", *options, *plugin, "--overwrite") == 0
    model = tmp_path / "out" / "model"
    assert run("evaluate", "--model", model, "--data", data, *plugin) == 0
    capsys.readouterr()
    image = data / "images" / "rows" / "00.png"
    assert run("predict", image, "--model", model, "--output", tmp_path / "masks", *plugin) == 0
    check_prediction(lines_of(capsys)[0], (SIZE, SIZE))


# The rest


def test_list_and_version(capsys):
    assert run("list", "*resnet50") == 0
    assert capsys.readouterr().out.splitlines() == mme.list_models("*resnet50") != []
    assert run("list") == 0
    assert capsys.readouterr().out.splitlines() == mme.list_models()
    assert run("--version") == 0 and capsys.readouterr().out.strip() == mme.__version__
    assert run() == 2 and "COMMAND" in capsys.readouterr().err


def test_the_command_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="minmax-entropy")
    assert script.load() is cli.main


def test_demo(tmp_path, capsys, monkeypatch):
    """The whole demo, in small: finite figures, a picture, and a model that loads and predicts the examples."""
    monkeypatch.setattr(demo, "TEST_IMAGES", 24)
    rows = run_demo(tmp_path, epochs=1, train_images=48)
    assert list(rows) == [
        *("all-ones", "CAM baseline", "CAM baseline, refined", "min-max entropy", "min-max entropy + erasing")
    ]
    plain, refined = rows["CAM baseline"], rows["CAM baseline, refined"]
    assert plain["error"] == refined["error"] and plain["pxap"] != refined["pxap"]
    for name, metrics in rows.items():
        assert all(math.isfinite(value) for value in metrics.values())
        assert {"f1_foreground", "f1_background", "pxap", "mask_area"} <= set(metrics)
        assert ("error" in metrics) == (name != "all-ones")
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in rows)
    picture = np.asarray(Image.open(tmp_path / "overlays.png"))
    assert picture.shape[1] > 5 * 100 and len(np.unique(picture)) > 100
    model = mme.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    assert model.num_classes == len(model.class_names) == 6
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).mask.isfinite().all()
    (command,) = (line.split()[1:] for line in printed.splitlines() if line.startswith("  minmax-entropy predict"))
    assert run(*command) == 0  # as printed
    assert [result["share"] is not None for result in lines_of(capsys)] == [True] * 3
    assert len(list((tmp_path / "predictions").iterdir())) == 6


def test_demo_command(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(cli.models, "run_demo", lambda output, seed: given.append((output, seed)))
    assert run("demo", "--output", tmp_path, "--seed", 3) == 0
    assert given == [(tmp_path, 3)]
