"""Benchmarks of models, methods and seeds; Grad-CAM as one of the methods."""

import csv
import dataclasses
import json
import runpy
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy import factory, losses
from minmax_entropy.benchmark import methods
from minmax_entropy.benchmark import runs as benchmark
from minmax_entropy.benchmark.grad_cam import GradCAM
from minmax_entropy.benchmark.methods import METHODS, Method, get_method, register_method
from minmax_entropy.benchmark.runs import Benchmark, Combination, run_benchmark
from minmax_entropy.benchmark.tables import markdown, summarize
from minmax_entropy.data import DamagedFileError, SyntheticShapes
from minmax_entropy.engine import Inference, Recipe, TrainingError, evaluate, preprocess_for

SIZE = 64
TRAINED = [name for name, method in METHODS.items() if name != "all-ones" and method.trained_as is None]


@pytest.fixture(scope="module")
def shapes():
    return [
        SyntheticShapes(length=length, size=SIZE, num_classes=2, seed=seed) for seed, length in enumerate((16, 4, 8))
    ]


def small(shapes, output, **changes):
    settings = dict(
        models=["wsl_test_resnet"],
        methods=["all-ones", "cam-avg", "area"],
        seeds=[0],
        epochs=1,
        recipe=Recipe(lr=1e-3, batch_size=8, augmentation="flip"),
        output=output,
        size=SIZE,
        run=dict(progress=False),
    )
    return Benchmark(*shapes, **{**settings, **changes})


@pytest.fixture(scope="module")
def done(shapes, tmp_path_factory):
    """Two seeds, a few methods."""
    output = tmp_path_factory.mktemp("benchmark")
    chosen = small(
        shapes,
        output,
        methods=["all-ones", "cam-avg", "grad-cam", "area-erasing"],
        seeds=[0, 1],
        settings=dict(mask_omega=10.0),
    )
    lines = []
    return chosen, run_benchmark(chosen, lines.append), lines


def test_rows(done):
    """Every combination once; figures of the saved models, evaluated again."""
    chosen, rows, lines = done
    found = [(row["seed"], row["method"]) for row in rows]
    assert found == [(0, method) for method in chosen.methods] + [(1, method) for method in chosen.methods[1:]]
    assert len(lines) == len(rows) == 7
    assert lines[1].startswith("2 of 7: wsl_test_resnet, CAM, average, seed 0: error ")
    for row in rows:
        if row["method"] == "all-ones":
            assert "error" not in row and row["f1_background"] == 0.0 and row["mask_area"] == 1.0
            continue
        assert (
            row["epochs"] == 1 and row["images"] == 16 and 0 < row["lowest_mask_area"] <= row["highest_mask_area"] < 1
        )
        combination = Combination(row["model"], row["method"], row["seed"])
        trained_as = get_method(row["method"]).trained_as or row["method"]
        folder = dataclasses.replace(combination, method=trained_as).folder(chosen.output)
        model = mme.create_model(f"local-dir:{folder / 'model'}")
        assert model.mask_omega == 10.0
        if row["method"] == "grad-cam":
            model = GradCAM(model)
        metrics = evaluate(model, chosen.test, preprocess_for(model, SIZE)).metrics
        for name, value in metrics.items():
            assert row[name] == pytest.approx(value, abs=1e-4), name


def test_seeds_and_methods_differ(done):
    _, rows, _ = done
    figures = {(row["model"], row["method"], row["seed"]): row["pxap"] for row in rows if row["method"] != "all-ones"}
    assert len(set(figures.values())) == len(figures)


def test_tables(done):
    """Means and deviations over the seeds, in Markdown and CSV, rebuilt from the rows."""
    chosen, rows, _ = done
    with (chosen.output / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    with (chosen.output / "runs.csv").open(newline="") as file:
        assert [float(row["pxap"]) for row in csv.DictReader(file)] == [row["pxap"] for row in rows]
    assert [row["seeds"] for row in table] == ["1", "2", "2", "2"]  # nothing is drawn for a mask of ones
    first, second, legend = (chosen.output / "table.md").read_text().split("\n\n")
    lines = first.splitlines()
    assert len(lines) == 6
    found = second.splitlines()
    assert "own: swapped %" in found[0] and "judge: X+ %" in found[0] and "rival: X+ %" in found[0]
    assert len(found) == 5 and legend.startswith("own, judge: ")  # without the mask of ones
    for line, row in zip(lines[2:], table, strict=True):
        members = [r for r in rows if r["model"] == row["model"] and r["method"] == row["method"]]
        values = [r["pxap"] for r in members]
        mean = statistics.mean(values)
        assert float(row["pxap"]) == pytest.approx(mean) and METHODS[row["method"]].title in line
        if len(values) == 1:
            assert f" {100 * mean:.1f} |" in line and "±" not in line and row["pxap_std"] == "nan"
            continue
        deviation = statistics.stdev(values)
        assert float(row["pxap_std"]) == pytest.approx(deviation)
        assert f" {100 * mean:.1f} ± {100 * deviation:.1f} |" in line
        assert row["model"] in line


def test_figures_by_class(done):
    """Means over the seeds, in a table for each figure and in CSV; the border share of the true masks as well."""
    chosen, _, _ = done
    results = [
        json.loads(
            (Combination("wsl_test_resnet", "area-erasing", seed).folder(chosen.output) / "results.json").read_text()
        )
        for seed in (0, 1)
    ]
    with (chosen.output / "classes.csv").open(newline="") as file:
        rows = {(row["method"], row["class"]): row for row in csv.DictReader(file)}
    assert len(rows) == 3 * 2
    for name in chosen.test.class_names:
        values = [result["classes"][name]["border_share"] for result in results]
        assert float(rows["area-erasing", name]["border_share"]) == pytest.approx(statistics.mean(values))
        assert 0 <= float(rows["cam-avg", name]["judge_background"]) <= 1
    parts = (chosen.output / "classes.md").read_text().split("## ")[1:]
    titles = [part.splitlines()[0] for part in parts]
    wanted = ("error %", "F1+ %", "border %", "judge: X+ %", "judge: X- %")
    assert titles[:5] == [f"wsl_test_resnet: {heading}" for heading in wanted]
    assert ["true masks" in part for part in parts[:5]] == [False, False, True, False, False]
    warnings = [warning for result in results for warning in result["warnings"]]
    assert all(warning in parts[-1] for warning in warnings)


def test_the_judge_is_trained_first_and_judges_itself(shapes, tmp_path):
    rows = run_benchmark(small(shapes, tmp_path, methods=["area", "cam-avg"]), lambda line: None)
    assert [row["method"] for row in rows] == ["area", "cam-avg"]
    assert rows[0]["judge_whole"] == rows[1]["judge_whole"] == pytest.approx(1 - rows[1]["error"])
    rows = run_benchmark(small(shapes, tmp_path / "without", methods=["area"]), lambda line: None)
    assert "judge_whole" not in rows[0] and "classifier_foreground" in rows[0]
    folder = Combination("wsl_test_resnet", "area", 0).folder(tmp_path / "without")
    written = [(path, path.stat().st_mtime_ns) for path in (folder / "log.csv", folder / "model" / "model.safetensors")]
    rows = run_benchmark(small(shapes, tmp_path / "without", methods=["area", "cam-avg"]), lambda line: None)
    assert rows[0]["judge_whole"] == rows[1]["judge_whole"]
    assert [(path, path.stat().st_mtime_ns) for path, _ in written] == written  # nothing was trained anew


def test_pictures(done):
    chosen, _, _ = done
    names = {path.name for path in (chosen.output / "pictures").iterdir()}
    assert names == {
        f"{model}{suffix}.png" for model in chosen.models for suffix in ("", "_cam-avg", "_grad-cam", "_area-erasing")
    }
    with Image.open(chosen.output / "pictures" / "wsl_test_resnet.png") as picture:
        assert picture.width > 4.5 * 160 and picture.height > 8 * 160


def test_nothing_is_trained_twice(done, monkeypatch):
    chosen, rows, _ = done
    monkeypatch.setattr(benchmark, "evaluate", lambda *args, **kwargs: pytest.fail("it is evaluated again"))
    monkeypatch.setattr("minmax_entropy.engine.loop.Training._train_epoch", lambda *args: pytest.fail("trained again"))
    assert run_benchmark(chosen, lambda line: None) == rows


def test_other_settings_in_the_same_folder_are_refused(done):
    chosen, _, _ = done
    with pytest.raises(ValueError, match=r"can't be resumed with other settings than its own: epochs: it has 1, asked"):
        run_benchmark(dataclasses.replace(chosen, epochs=2), lambda line: None)


def test_a_method_that_changed_is_refused(done, monkeypatch):
    chosen, _, _ = done
    monkeypatch.setitem(
        METHODS, "grad-cam", dataclasses.replace(METHODS["grad-cam"], evaluated_with=dict(mask_sigma=0.25))
    )
    with pytest.raises(ValueError, match=r"seed0 can't be resumed .* evaluated_with\.mask_sigma: it has None"):
        run_benchmark(chosen, lambda line: None)


def test_own_methods(shapes, tmp_path, monkeypatch):
    """With a learning rate of its own, and one that takes its weights with another threshold on the map."""
    monkeypatch.setattr("minmax_entropy.benchmark.methods.METHODS", dict(METHODS))
    register_method("own", Method("own", dict(preset="cam", localizer="max"), dict(lr=0.125)))
    register_method("low", Method("own, low", trained_as="own", evaluated_with=dict(mask_sigma=0.1)))
    with pytest.raises(ValueError, match="unknown method 'owm'; did you mean own"):
        register_method("other", Method("other", trained_as="owm"))
    register_method("flips", Method("own, flips", trained_as="own", inference=dict(flips=["horizontal"])))
    chosen = small(shapes, tmp_path, methods=["low", "own", "flips"])
    low, own, flips = run_benchmark(chosen, lambda line: None)
    run = json.loads((tmp_path / "runs" / "wsl_test_resnet" / "own" / "seed0" / "run.json").read_text())
    assert run["settings"]["recipe"]["lr"] == 0.125
    assert low["error"] == own["error"] and low["mask_area"] > own["mask_area"] + 0.1
    assert flips["pxap"] != own["pxap"]
    model = mme.create_model(f"local-dir:{tmp_path / 'runs' / 'wsl_test_resnet' / 'own' / 'seed0' / 'model'}")
    again = evaluate(model, shapes[2], preprocess_for(model, SIZE), inference=Inference(flips=("horizontal",)))
    assert again.metrics["pxap"] == pytest.approx(flips["pxap"], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(recipe=dict(learning_rate=0.1)), "unknown setting 'learning_rate'"),
        (dict(evaluated_with=dict(mask_sgima=0.1)), "unknown setting 'mask_sgima'; did you mean mask_sigma"),
        (dict(inference=dict(flip=["both"])), "unknown setting 'flip'; did you mean flips"),
        (dict(inference=dict(flips=["sideways"])), "flips are any of .* got 'sideways'"),
        (dict(inference=dict(refine="guided")), "own: inference is without a `refine` here"),
        (dict(inference=dict(tile=64), trained_as="cam-avg", grad_cam="grad_cam"), "own: .* not for Grad-CAM"),
        (dict(grad_cam="gradcam"), "unknown Grad-CAM method 'gradcam'"),
        (dict(trained_as="area", recipe=dict(lr=0.1)), "own: what is trained_as another method has no settings"),
        (dict(trained_as="grad-cam"), "trained_as must be a method that is trained itself, 'grad-cam' is not"),
        (dict(trained_as="all-ones"), "trained_as must be a method that is trained itself, 'all-ones' is not"),
        (dict(trained_as="own"), "trained_as must be a method that is trained itself, 'own' is not"),
    ],
)
def test_bad_methods(fields, message):
    with pytest.raises(ValueError, match=message):
        register_method("own", Method("own", **fields))
    assert "own" not in METHODS


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TrainingError("epoch 0: the loss is nan"), "epoch 0: the loss is nan"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    ],
    ids=["loss", "disk", "memory"],
)
def test_a_training_that_fails_leaves_the_others(shapes, tmp_path, monkeypatch, error, text):
    fit = benchmark.fit

    def fails(model, *args, **kwargs):
        if model.classifier is None:
            raise error
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(benchmark, "fit", fails)
    lines = []
    rows = run_benchmark(small(shapes, tmp_path), lines.append)
    assert [row["method"] for row in rows] == ["all-ones", "area"]
    line = f"wsl_test_resnet, CAM, average, seed 0: {text}"
    assert line in lines and lines[-1] == f"1 of 3 failed:\n{line}"
    assert len((tmp_path / "table.md").read_text().split("\n\n")[0].splitlines()) == 4


@pytest.mark.parametrize("error", [DamagedFileError("a.png", "broken"), KeyboardInterrupt()], ids=["file", "user"])
def test_what_ends_a_benchmark_at_once(shapes, tmp_path, monkeypatch, error):
    calls = []

    def fails(*args, **kwargs):
        calls.append(args)
        raise error

    monkeypatch.setattr(benchmark, "fit", fails)
    with pytest.raises(type(error)):
        run_benchmark(small(shapes, tmp_path), lambda line: None)
    assert len(calls) == 1


def test_unknown_method(shapes, tmp_path):
    with pytest.raises(ValueError, match="unknown method 'gradcam'; did you mean grad-cam"):
        run_benchmark(small(shapes, tmp_path, methods=["gradcam"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TRAINED)
def test_methods_build(name):
    """Each is a model with a finite loss, and with the erasing and size terms that its title says."""
    method = METHODS[name]
    torch.manual_seed(0)
    model = mme.create_model("wsl_test_resnet", num_classes=3, img_size=SIZE, **method.settings)
    model.erasing.steps = method.recipe.get("erasing_steps", 0)
    output = model(torch.randn(2, 3, SIZE, SIZE), torch.tensor([0, 2]))
    assert output.loss.isfinite()
    assert (model.classifier is None) == ("entropy" not in method.title)
    assert ("size" in output.losses) == ("size" in method.title or "area" in method.title)
    assert (model.erasing.steps > 0) == ("erasing" in method.title)


def test_summary_of_one_seed():
    rows = [{"model": "m", "method": "area", "seed": 0, "error": 0.25, "pxap": None}]
    summary = summarize(rows)
    assert summary[0]["error"] == 0.25 and np.isnan(summary[0]["error_std"]) and np.isnan(summary[0]["pxap"])
    assert " 25.0 |" in markdown(summary) and "±" not in markdown(summary)


# Grad-CAM


def test_grad_cam_by_hand():
    """Weights are the means of the gradients over the positions; the map is their weighted sum, cut at zero."""
    torch.manual_seed(0)
    model = mme.create_model(
        "wsl_test_resnet", num_classes=3, img_size=SIZE, out_index=1, preset="cam", localizer="lse"
    )
    model.eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    output = GradCAM(model)(images)
    features = model.forward_features(images).detach().requires_grad_()
    scores, _ = model.localizer(features)
    scores.max(dim=1).values.sum().backward()
    region = (features.grad.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu().detach()
    for index in range(2):
        small = region[index]
        assert small.max() > 0
        shown = output.mask[index, 0]
        # The mask at the centres of the map's positions follows the map.
        step = SIZE // small.shape[0]
        at_centres = shown.unfold(0, step, step).unfold(1, step, step).mean(dim=(2, 3))
        correlation = np.corrcoef(at_centres.numpy().ravel(), small.numpy().ravel())[0, 1]
        assert correlation > 0.9
    torch.testing.assert_close(output.logits, model(images).logits)


@pytest.mark.parametrize("name", ["wsl_test_resnet", "wsl_test_vit"])
@pytest.mark.parametrize("method", ["grad_cam", "grad_cam++", "layer_cam"])
def test_grad_cam_of_any_backbone(name, method):
    """No `reshape_transform`; neither modes nor gradients of the model change, within inference mode as well."""
    torch.manual_seed(0)
    model = mme.create_model(name, num_classes=3, img_size=SIZE, preset="cam")
    model.backbone.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.inference_mode():
        output = GradCAM(model.eval(), method)(torch.randn(3, 3, SIZE, SIZE))
    assert output.mask.shape == (3, 1, SIZE, SIZE) and 0 <= output.mask.min() and output.mask.max() <= 1
    assert output.mask.flatten(1).std(dim=1).max() > 0.1  # a map without a positive value is flat
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.backbone._forward_hooks


def test_grad_cam_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    model = mme.create_model("wsl_test_resnet", num_classes=3, img_size=SIZE, preset="cam")
    with pytest.raises(ImportError, match=r"Grad-CAM needs pytorch_grad_cam.*minmax-entropy\[benchmark\]"):
        GradCAM(model)
    with pytest.raises(ValueError, match="method must be one of"):
        GradCAM(model, "cam")


# Command line


def test_benchmark_command(tmp_path, capsys, monkeypatch):
    from minmax_entropy.cli import main

    data = SyntheticShapes(length=40, size=SIZE, num_classes=2)
    for folder in ("images", "masks"):
        for name in data.class_names:
            (tmp_path / folder / name).mkdir(parents=True)
    for index in range(40):
        sample = data[index]
        place = f"{data.class_names[sample.target]}/{index:02d}.png"
        sample.image.save(tmp_path / "images" / place)
        Image.fromarray(sample.mask).save(tmp_path / "masks" / place)
    output, plugin = tmp_path / "out", tmp_path / "methods.py"
    plugin.write_text(
        "from minmax_entropy.benchmark.methods import Method, register_method\n"
        "method = Method('WILDCAT, steep', trained_as='wildcat', evaluated_with=dict(mask_omega=20.0))\n"
        "register_method('steep', method)\n"
    )
    monkeypatch.setattr("minmax_entropy.benchmark.methods.METHODS", dict(METHODS))
    command = f"benchmark --data {tmp_path} --plugin {plugin} --models wsl_test_resnet --epochs 1 --size {SIZE}"
    command += " --methods all-ones wildcat steep"
    status = main([*command.split(), "--recipe", "scratch", "--shots", "8", "--output", str(output)])
    out = capsys.readouterr().out
    assert status == 0 and "WILDCAT, steep" in out and "all-ones" in out and str(output) in out
    settings = json.loads(next(output.glob("runs/*/wildcat/seed0/run.json")).read_text())["settings"]
    assert settings["train"]["images"] == 16 and settings["recipe"]["lr"] == 1e-2
    assert (output / "table.md").read_text().strip() in out
    arguments = f"--models wsl_test_resnet wsl_test_resnett --output {tmp_path / 'other'}".split()
    status = main([*command.split(), "--recipe", "scratch", "--shots", "8", *arguments])
    out = capsys.readouterr().out
    assert status == 1 and "2 of 6 failed:\nwsl_test_resnett, WILDCAT" in out and "did you mean" in out


# Configurations of benchmarks/quality

QUALITY = Path(__file__).parent.parent / "benchmarks" / "quality"


@pytest.mark.parametrize("path", sorted(QUALITY.glob("*.json")), ids=lambda path: path.stem)
def test_configurations_of_the_repository(path, monkeypatch, tmp_path):
    """Each can be run: its methods, their models and its recipe exist."""
    monkeypatch.chdir(QUALITY.parent.parent)
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))
    monkeypatch.syspath_prepend(QUALITY)
    script = runpy.run_path(str(QUALITY / "run.py"))
    config = script["read_config"](path, "shapes:") | {"classes": None, "data_options": {"length": 16}}
    monkeypatch.setattr(factory._MODELS, "_factories", dict(factory._MODELS._factories))  # plugins add to them
    monkeypatch.setattr(losses._LOSSES["size"], "_factories", dict(losses._LOSSES["size"]._factories))
    own, config["pretrained"] = config["models"], False
    if own == ["wsl_trial"]:
        config["settings"] = {**config["settings"], "backbone": "test_resnet"}
    else:
        config["models"] = ["wsl_test_resnet"]
    benchmark = script["create_benchmark"]({**config, "shots": None}, tmp_path)
    assert all(mme.is_model(name) for name in own)
    for name in benchmark.methods:
        method = get_method(name)
        dataclasses.replace(benchmark.recipe, **method.recipe)
        settings = get_method(method.trained_as or name).settings
        model = mme.create_model(config["models"][0], num_classes=2, **{**benchmark.settings, **settings})
        for key, value in method.evaluated_with.items():
            setattr(model, key, value)
