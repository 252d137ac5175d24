"""Training: recipes, the loop, what it keeps and writes, and that it goes on after any interruption."""

import contextlib
import csv
import dataclasses
import inspect
import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import RECIPE, SIZE, InMemory, create, noise_images

import minmax_entropy as mme
from minmax_entropy.data import (
    DamagedFileError,
    ImageFiles,
    LabelledImages,
    LabelledStream,
    Record,
    Subset,
    SyntheticShapes,
    TrainingTransform,
)
from minmax_entropy.data.loading import TrainingStream
from minmax_entropy.engine import (
    RECIPES,
    Recipe,
    TrainingError,
    evaluate,
    fit,
    get_recipe,
    loop,
    preprocess_for,
    selection,
    step_decay,
    warmup_cosine,
)
from minmax_entropy.engine.checkpoints import Checkpoints
from minmax_entropy.inference.refinement import AffinityRefinement


def run(model, data, recipe=RECIPE, epochs=1, **keywords):
    """Without augmentation."""
    return fit(model, data, recipe, epochs, **{"progress": False, "transform": preprocess_for(model), **keywords})


@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
def test_images_are_resized_as_the_data_config_says(shapes, monkeypatch, interpolation):
    made = []

    def transform(*args):
        made.append(TrainingTransform(*args))
        return made[-1]

    monkeypatch.setattr("minmax_entropy.engine.train.TrainingTransform", transform)
    model = create(data_config=dict(interpolation=interpolation))
    fit(model, shapes, dataclasses.replace(RECIPE, augmentation="none"), 1, size=32, progress=False)
    config = model.data_config
    same = TrainingTransform("none", 32, config["mean"], config["std"], interpolation)
    assert torch.equal(made[0](shapes.image(0)), same(shapes.image(0)))


# Schedules and recipes


@pytest.mark.parametrize(
    ("epoch", "delay", "expected"),
    [
        (0, 0, 0.1),
        (39, 0, 0.1),
        (40, 0, 0.01),
        (79, 0, 0.01),
        (80, 0, 0.001),
        (0, 1, 0.1),
        (40, 1, 0.1),
        (41, 1, 0.01),
        (80, 1, 0.01),
        (81, 1, 0.001),
        (4000, 0, 1e-7),
    ],
)
def test_step_decay(epoch, delay, expected):
    assert step_decay(epoch, 0.1, step_size=40, delay=delay) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.02),  # the first step already trains: a hundredth of the rate
        (0.1, 1.0),
        (0.2, 2.0),
        (0.4, 1 + math.cos(math.pi / 4)),
        (0.6, 1.0),
        (1.0, 0.0),
        (1.1, 0.0),
    ],
)
def test_warmup_cosine(progress, expected):
    assert warmup_cosine(progress, 2.0, warmup=0.2) == pytest.approx(expected, abs=1e-12)


def test_the_size_term_comes_in_slowly(shapes):
    """Its weight rises with the steps, and is whole again between them; other terms are as they are."""
    recipe = dataclasses.replace(RECIPE, size_warmup=0.5)
    assert [recipe.size_share_at(done) for done in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert RECIPE.size_share_at(0.0) == 1.0
    model, shares, sums = create(preset="area", size_weight=2.0), [], []

    def seen(criterion, _, result):
        loss, losses = result[0].detach(), {name: value.detach() for name, value in result[1].items()}
        shares.append(criterion.size_share)
        rest = sum(value for name, value in losses.items() if name != "size")
        sums.append(float(loss - rest - criterion.size_share * 2.0 * losses["size"]))

    model.criterion.register_forward_hook(seen)
    result = run(model, shapes, recipe, epochs=2)
    steps = len(shares) // 2
    assert len(result.log) == 2 and steps > 1
    assert shares == pytest.approx([min(number / steps, 1.0) for number in range(2 * steps)])
    assert sums == pytest.approx([0.0] * len(sums), abs=1e-5)
    assert model.criterion.size_share == 1.0 and model.settings()["size_weight"] == 2.0


def test_warmup_cosine_ends():
    assert warmup_cosine(0.0, 2.0) == 2.0
    assert warmup_cosine(1.0, 2.0, min_lr=0.5) == 0.5
    assert warmup_cosine(0.5, 2.0, min_lr=1.0) == pytest.approx(1.5)
    assert warmup_cosine(1.0, 2.0, warmup=1.0) == pytest.approx(2.0)


def test_lr_of_a_recipe():
    step = Recipe(schedule="step", lr=1.0, step_size=10, step_delay=1)
    assert [step.lr_at(epoch, 0.5) for epoch in (0, 10, 11)] == pytest.approx([1.0, 1.0, 0.1])
    cosine = Recipe(schedule="cosine", lr=1.0, warmup=0.5)
    assert [cosine.lr_at(99, progress) for progress in (0.25, 0.5, 0.75)] == pytest.approx([0.5, 1.0, 0.5])


def groups_by_name(model, recipe):
    optimizer = recipe.build_optimizer(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in optimizer.param_groups)  # each once
    return groups


def test_groups():
    """Weight decay on weights alone, the heads' own learning rate, and nothing frozen."""
    model = create(shared_backbone=False)
    frozen = next(name for name, _ in model.named_parameters())
    model.get_parameter(frozen).requires_grad_(False)
    recipe = Recipe(lr=0.1, head_lr_factor=10.0, weight_decay=0.3)
    groups = groups_by_name(model, recipe)
    assert set(groups) == {name for name, _ in model.named_parameters()} - {frozen}
    assert any(name.startswith("classifier_backbone.") for name in groups)
    for name, group in groups.items():
        is_head = name.startswith(("localizer.", "classifier."))
        assert group["lr_factor"] == (10.0 if is_head else 1.0)
        assert group["lr"] == pytest.approx(1.0 if is_head else 0.1)
        assert group["weight_decay"] == (0.3 if model.get_parameter(name).ndim > 1 else 0.0)
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.3}


def test_decay_of_everything():
    groups = groups_by_name(create(), Recipe(weight_decay=0.3, decay_all=True))
    assert {group["weight_decay"] for group in groups.values()} == {0.3}


def test_optimizers():
    model = create()
    sgd = Recipe(optimizer="sgd", momentum=0.8).build_optimizer(model)
    assert type(sgd) is torch.optim.SGD and sgd.defaults["momentum"] == 0.8 and sgd.defaults["nesterov"]
    assert type(Recipe(optimizer="adamw").build_optimizer(model)) is torch.optim.AdamW


def test_get_recipe():
    recipe = get_recipe("finetune", lr=0.5, batch_size=None)
    assert recipe.lr == 0.5 and recipe.batch_size == RECIPES["finetune"].batch_size
    assert get_recipe("reference").erasing_steps == 4 and get_recipe("reference").decay_all
    with pytest.raises(ValueError, match="unknown recipe 'fintune'; did you mean finetune"):
        get_recipe("fintune")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(optimizer="adam"), r"optimizer must be one of \('adamw', 'sgd'\), got 'adam'"),
        (dict(schedule="linear"), r"schedule must be one of \('cosine', 'step'\), got 'linear'"),
        (dict(lr=0), "lr must be over 0, got 0"),
        (dict(lr=-1.0), "lr must be over 0, got -1"),
        (dict(lr=float("nan")), "lr must be over 0, got nan"),
        (dict(lr=float("inf")), "lr must be over 0, got inf"),
        (dict(batch_size=0), "batch_size must be 1 or more, got 0"),
        (dict(erasing_steps=-1), "erasing_steps must be 0 or more, got -1"),
        (dict(augmentation="mixup"), r"augmentation must be one of \('crop', .*, got 'mixup'"),
        (dict(sampling="even"), r"sampling must be one of \('shuffle', 'balanced'\), got 'even'"),
        (dict(class_weights="yes"), r"class_weights must be one of \(None, 'balanced'\), got 'yes'"),
        (dict(ema_decay=1.0), r"ema_decay must be in \(0, 1\), got 1.0"),
        (dict(patience=0), "patience must be 1 or more, got 0"),
        (dict(size_warmup=1.5), r"size_warmup must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_recipe(keywords, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**keywords)


# Training


def test_training_lowers_loss_and_error(shapes):
    model = create()
    result = run(model, shapes, Recipe(lr=3e-3, batch_size=8, warmup=0.1), epochs=8)
    first, last = result.log[0], result.log[-1]
    assert len(result.log) == 8 and last["loss"] < 0.8 * first["loss"]
    assert last["localizer"] < 0.5 * first["localizer"]
    assert last["train_error"] < 0.2 and evaluate(model, shapes).metrics["error"] < 0.3
    assert result.best_epoch == 7 and result.damaged == []


def test_logged_means_are_those_of_the_batches(shapes):
    """By a learning rate that changes nothing: the loss of an epoch is the mean over its images."""
    model = create(norm_layer="groupnorm1")
    result = run(model, shapes, Recipe(lr=1e-12, batch_size=5, weight_decay=0.0))
    preprocess = preprocess_for(model)
    torch.manual_seed(0)
    images = torch.stack([preprocess(shapes.image(index)) for index in range(24)])
    with torch.no_grad():
        output = model(images, torch.tensor([shapes.target(index) for index in range(24)]))
    # 4 batches of 5, the incomplete last one is dropped.
    assert result.log[0]["images"] == 20
    assert result.log[0]["loss"] == pytest.approx(float(output.loss), abs=0.05)
    assert result.log[0]["mask_area"] == pytest.approx(float(output.mask.mean()), abs=0.05)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def validate_with(monkeypatch, errors, images=100):
    """Let validations say that so many images had these errors; the states that they saw."""
    remaining, seen = iter(errors), []

    def fake(model, *args, **kwargs):
        seen.append(state(model))
        return SimpleNamespace(metrics={"error": next(remaining), "mask_area": 0.5}, damaged=[], rows=[{}] * images)

    monkeypatch.setattr(selection, "evaluate", fake)
    monkeypatch.setattr(selection.Selection, "diagnose", lambda self, model: [])  # it evaluates the model once more
    return seen


@pytest.mark.parametrize(
    ("errors", "images", "tolerance", "kept"),
    [
        ([0.5, 0.25, 0.25, 0.75], 100, 1, 2),
        ([0.5, 0.25, 0.29, 0.30], 100, 1, 2),  # the standard error of a quarter of 100 is 0.0433
        ([0.5, 0.25, 0.29, 0.30], 100, 2, 3),
        ([0.5, 0.25, 0.27, 0.30], 1000, 1, 1),  # and 0.0137 of 1000
        ([0.25, 0.5, 0.25, 0.29], 100, 0, 2),
        ([0.29, 0.25, 0.3, 0.2], 100, 1, 3),
        ([0.31, 0.28, 0.25, 0.3], 100, 1, 2),
        ([0.25, 0.29, 0.32, 0.5], 100, 1, 1),  # compared with the lowest, and not with the one kept before
        ([0.02, 0.0, 0.01, 0.02], 100, 1, 2),  # none has no standard error: an image is within the tolerance
        ([0.08, 0.01, 0.02, 0.03], 100, 1, 2),
        ([0.07, 0.06, 0.06, 0.07], 100, 0, 2),
        ([1.0, 1.0, 1.0, 1.0], 100, 1, 3),
    ],
)
def test_the_latest_epoch_within_the_tolerance_is_kept(shapes, monkeypatch, errors, images, tolerance, kept):
    seen = validate_with(monkeypatch, errors, images)
    model = create()
    recipe = Recipe(lr=1e-3, batch_size=8, selection_tolerance=tolerance)
    result = run(model, shapes, recipe, epochs=4, valid=shapes)
    assert result.best_epoch == kept and [row["valid_error"] for row in result.log] == errors
    assert [same(states, state(model)) for states in seen] == [epoch == kept for epoch in range(4)]


def test_what_is_kept_survives_an_interruption(shapes, monkeypatch, tmp_path):
    """An epoch within the tolerance of the lowest error, in its folder and in what a resumed training knows."""
    recipe = Recipe(lr=1e-3, batch_size=8)
    seen = validate_with(monkeypatch, [0.25, 0.29])
    with pytest.raises(StopIteration):  # the third validation
        run(create(), shapes, recipe, epochs=3, valid=shapes, output=tmp_path)
    validate_with(monkeypatch, [0.3])
    model = create()
    result = run(model, shapes, recipe, epochs=3, valid=shapes, output=tmp_path, resume=True)
    assert result.best_epoch == 1 and same(seen[1], state(model)) and not same(seen[0], state(model))
    saved = mme.create_model(f"local-dir:{tmp_path / 'model'}")
    assert same(seen[1], state(saved)) and saved.info["metrics"]["epoch"] == 1
    again = run(create(), shapes, recipe, epochs=3, valid=shapes, output=tmp_path, resume=True)  # it is over
    assert again.best_epoch == 1


def test_selection_of_the_recipes(shapes):
    assert get_recipe("reference").selection_tolerance == 0  # the last of those with the lowest error
    assert get_recipe("finetune").selection_tolerance == get_recipe("scratch").selection_tolerance == 1
    with pytest.raises(ValueError, match="selection_tolerance must be a number of 0 or more, got -1"):
        Recipe(selection_tolerance=-1)


def test_last_epoch_is_kept_on_request(shapes, monkeypatch):
    seen = validate_with(monkeypatch, [0.25, 0.5])
    model = create()
    result = run(model, shapes, epochs=2, valid=shapes, keep_best=False)
    assert result.best_epoch == 1 and same(seen[1], state(model))


@pytest.mark.parametrize(("steps", "start", "expected"), [(2, 1, {0, 2}), (2, 0, {2}), (2, 9, {0}), (0, 1, {0})])
def test_erasing_is_switched_on_between_epochs(shapes, steps, start, expected):
    model, seen = create(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.erasing.steps))
    run(model, shapes, Recipe(lr=1e-4, batch_size=8, erasing_steps=steps, erasing_from_epoch=start), epochs=3)
    assert len(seen) == 9 and set(seen) == expected
    assert seen[: 3 * start] == [0] * min(3 * start, 9) and set(seen[3 * start :]) <= {steps}


@pytest.mark.parametrize("epoch", [0, 1])
def test_loss_that_is_not_finite_names_the_epoch(shapes, monkeypatch, epoch):
    model = create()

    def poison(*args, **kwargs):
        model.localizer.get_parameter(next(name for name, _ in model.localizer.named_parameters())).data.fill_(math.nan)
        return SimpleNamespace(metrics={"error": 0.5, "mask_area": 0.5}, damaged=[], rows=[{}])

    if epoch == 0:
        poison()
    monkeypatch.setattr(selection, "evaluate", poison)
    with pytest.raises(TrainingError, match=rf"epoch {epoch}: the loss is nan \(.*localizer=nan.*\); lower"):
        run(model, shapes, epochs=3, valid=shapes)


def test_too_high_a_learning_rate_ends_with_an_error(shapes):
    with pytest.raises(TrainingError, match=r"epoch \d: the loss is (nan|inf)"):
        run(create(), shapes, Recipe(optimizer="sgd", lr=1e30, batch_size=8), epochs=3)


@pytest.mark.parametrize(
    ("sigma", "text"), [(0.0, "has collapsed to the whole image"), (1.0, "marks next to nothing"), (0.5, None)]
)
def test_warning_of_a_collapsed_mask(shapes, caplog, sigma, text):
    model = create(mask_sigma=sigma, mask_omega=200.0 if text else 8.0)
    result = run(model, shapes, Recipe(lr=1e-6, batch_size=8))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if text is None:
        assert not warnings
        return
    area = 100 * result.log[0]["mask_area"]
    assert len(warnings) == 1 and text in warnings[0] and f"epoch 0: the mask covers {area:.1f} %" in warnings[0]


def test_class_baseline_trains(shapes, caplog):
    """A plain CAM has the localizer's loss alone."""
    result = run(
        create(preset="cam", mask_sigma=1.0, mask_omega=200.0), shapes, Recipe(lr=3e-3, batch_size=8), epochs=2
    )
    assert result.log[0]["loss"] == pytest.approx(result.log[0]["localizer"])
    assert "foreground" not in result.log[0] and 0 < result.log[0]["mask_area"] < 1
    assert not caplog.records  # the mask takes no part in its training


def figures(result):
    """The log without the times."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.log]


RANDOM = dict(localizer=dict(name="wildcat", dropout=0.5))  # noise of its own, beside the augmentation's


def noisy(image):
    """An augmentation that draws from every generator."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    values = values + 0.1 * torch.randn(()) + 0.1 * np.random.rand()
    return (values.flip(2) if random.random() < 0.5 else values).float()


def test_same_seed_same_result_for_any_number_of_workers(shapes):
    trained = []
    for seed, workers in ((3, 0), (3, 1), (3, 2), (4, 0)):
        model = create(**RANDOM)
        result = run(model, shapes, epochs=2, seed=seed, workers=workers, transform=noisy, valid=shapes)
        trained.append((state(model), figures(result)))
    first, *others, other_seed = trained
    for weights, log in others:
        assert same(first[0], weights) and first[1] == log
    assert not same(first[0], other_seed[0])


def test_what_a_run_writes(shapes, tmp_path):
    """A row per epoch, the same in the result and in the file; both best models; no checkpoint is left behind."""
    output = tmp_path / "deep" / "run"
    for epochs in (3, 2):
        model = create()
        result = run(model, shapes, epochs=epochs, valid=shapes, output=output, overwrite=True)
        with (output / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == list(range(epochs))
        for row, logged in zip(rows, result.log, strict=True):
            assert {name: float(value) for name, value in row.items()} == pytest.approx(logged)
    row = result.log[0]
    assert row["images"] == 24 and 0 <= row["train_error"] <= 1 and 0 <= row["valid_error"] <= 1
    assert row["loss"] == pytest.approx(row["localizer"] + row["foreground"] + row["background"], rel=1e-5)
    assert 0 < row["mask_area"] < 1 and 0 < row["valid_mask_area"] < 1
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    saved = {"README.md", "config.json", "model.safetensors"}
    folders = {f"{folder}/{name}" for folder in ("model", "model_best_f1") for name in saved}
    assert files == {"log.csv", "curves.png", "run.json", *folders}
    with Image.open(output / "curves.png") as picture:
        assert picture.width > 1000
    kept = mme.create_model(f"local-dir:{output / 'model'}")
    assert same(state(kept), state(model)) and kept.class_names == shapes.class_names
    assert kept.info["metrics"]["valid_error"] == pytest.approx(result.log[result.best_epoch]["valid_error"])
    best = max(result.log, key=lambda row: row["valid_f1_foreground"])
    assert result.best_f1_epoch == best["epoch"]
    by_f1 = mme.create_model(f"local-dir:{output / 'model_best_f1'}")
    assert evaluate(by_f1, shapes).metrics["f1_foreground"] == pytest.approx(best["valid_f1_foreground"], abs=1e-6)


def test_without_validation_the_last_epoch_is_written(shapes, tmp_path):
    model = create()
    result = run(model, shapes, epochs=2, output=tmp_path)
    assert result.best_epoch == 1 and result.best_f1_epoch is None and not (tmp_path / "model_best_f1").exists()
    assert same(state(mme.create_model(f"local-dir:{tmp_path / 'model'}")), state(model))


def test_masks_of_the_validation_may_stay_closed(shapes, monkeypatch):
    monkeypatch.setattr(SyntheticShapes, "mask", lambda *args: pytest.fail("a mask was opened"))
    result = run(create(), shapes, valid=shapes, valid_masks=False)
    assert "valid_error" in result.log[0] and "valid_f1_foreground" not in result.log[0]


@pytest.mark.parametrize("decision", ["localizer", "classifier"])
@pytest.mark.parametrize("valid_masks, in_data", [(False, True), (True, True), (True, False)])
def test_masks_are_refined_in_validation_where_a_figure_depends_on_it(
    shapes, monkeypatch, valid_masks, in_data, decision
):
    if not in_data:
        monkeypatch.setattr(SyntheticShapes, "mask", LabelledImages.mask)
    refined = []
    forward = AffinityRefinement.forward
    monkeypatch.setattr(AffinityRefinement, "forward", lambda *args: refined.append(1) or forward(*args))
    model = create(preset="refined", decision=decision)
    options = model.mask_refinement
    result = run(model, shapes, valid=shapes, valid_masks=valid_masks)
    assert bool(refined) == ((valid_masks and in_data) or decision == "classifier")
    assert model.mask_refinement == options and 0 < result.log[0]["valid_mask_area"] < 1


def test_the_validation_takes_every_image_for_one_with_an_object(shapes):
    model = create(min_probability=1.0)
    result = run(model, shapes, valid=shapes)
    assert model.min_probability == 1.0 and result.log[0]["valid_mask_area"] > 0 < result.log[0]["valid_f1_foreground"]


def test_early_stopping(shapes, monkeypatch):
    validate_with(monkeypatch, [0.5, 0.25, 0.25, 0.75, 0.1])
    result = run(create(), shapes, Recipe(lr=1e-4, batch_size=8, patience=2), epochs=5, valid=shapes)
    assert [row["epoch"] for row in result.log] == [0, 1, 2, 3] and result.best_epoch == 2  # 1 is the first of equals


def test_learning_rates_in_training(shapes, monkeypatch):
    """Of each group by its factor, at each step."""
    seen = []
    step = torch.optim.SGD.step

    def record(self, *args, **kwargs):
        seen.append({(group["lr_factor"], group["lr"]) for group in self.param_groups})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    recipe = Recipe(optimizer="sgd", lr=0.01, head_lr_factor=5.0, batch_size=8, warmup=0.5)
    result = run(create(), shapes, recipe, epochs=2)
    expected = [recipe.lr_at(number // 3, number / 6) for number in range(6)]
    assert seen == [{(1.0, lr), (5.0, lr * 5.0)} for lr in expected]
    assert [row["lr"] for row in result.log] == [expected[2], expected[5]]


def test_accumulation_gives_the_gradient_of_the_whole_step(shapes):
    """Without BatchNorm the parts of a step add up, uneven ones as well."""
    trained = []
    for accumulation in (1, 2, 3):
        model = create(norm_layer="groupnorm1")
        recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, clip_grad=1.0)
        result = run(model, shapes, recipe, epochs=2, accumulation=accumulation)
        trained.append((state(model), result.log))
    for weights, log in trained[1:]:
        for name, value in trained[0][0].items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in trained[0][1]], rel=1e-5)


def test_moving_average_of_the_weights(shapes):
    """What is kept is the average; by hand over the weights after each step."""
    model, seen = create(norm_layer="groupnorm1"), []
    handle = model.register_forward_pre_hook(
        lambda module, inputs: seen.append(state(module)) if module.training else None
    )
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, ema_decay=0.5)
    run(model, shapes, recipe, epochs=2)
    handle.remove()
    plain = create(norm_layer="groupnorm1")
    run(plain, shapes, Recipe(optimizer="sgd", lr=0.05, batch_size=8), epochs=2)
    average = seen[1]  # after the first step; timm's warm-up of the decay: 1 - (1 + step) ** (-2 / 3)
    for step, weights in enumerate([*seen[2:], state(plain)], start=1):
        decay = min(1 - step ** (-2 / 3), 0.5) if step > 1 else 0.0
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    for name, value in state(model).items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16(shapes):
    model, dtypes = create(), set()
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    recipe = Recipe(lr=1e-4, batch_size=8, erasing_steps=2, erasing_from_epoch=0)
    result = run(model, shapes, recipe, precision="bf16")
    float32 = run(create(), shapes, recipe)
    assert dtypes == {torch.bfloat16} and result.log[0]["loss"] == pytest.approx(float32.log[0]["loss"], rel=0.02)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    dtypes.clear()
    model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    assert dtypes == {torch.float32}  # the model is as it was handed in


def test_trackers(shapes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(create(), shapes, epochs=2, output=tmp_path, trackers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "minmax_entropy"))
    events.Reload()
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([row["loss"] for row in result.log], rel=1e-6)


def test_balanced_class_weights(shapes):
    data = Subset(shapes, [0, 2, 4, 6, 8, 10, 1, 3])  # six of one class, two of the other
    model, seen = create(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.criterion.class_weights))
    run(model, data, Recipe(lr=1e-4, batch_size=8, class_weights="balanced"))
    assert seen == [pytest.approx([8 / 12, 2.0])] and model.criterion.class_weights is None


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (dict(epochs=0), ValueError, "epochs must be 1 or more, got 0"),
        (dict(precision="half"), ValueError, r"precision must be one of \('no', 'bf16', 'fp16'\), got 'half'"),
        (dict(accumulation=0), ValueError, "accumulation must be 1 or more, got 0"),
        (dict(accumulation=9), ValueError, r"a step of 8 images can't be cut into 1 \(processes\) x 9"),
        (dict(checkpoint_steps=0), ValueError, "checkpoint_steps must be 1 or more, got 0"),
        (dict(workers=-1), ValueError, "workers must be 0 or more, got -1"),
        (dict(resume=True), ValueError, "resume needs the output folder of the run"),
        (dict(trackers=["tensorboard"]), ValueError, "trackers need an output folder"),
        (dict(trackers=["wadnb"], output="unused"), ImportError, "no tracker 'wadnb'"),
        (dict(wrokers=1), TypeError, "wrokers"),
    ],
)
def test_bad_settings_of_a_run(shapes, keywords, error, message):
    with pytest.raises(error, match=message):
        run(create(), shapes, **keywords)


@pytest.mark.parametrize("module", ["accelerate", "matplotlib"])
def test_missing_extra(shapes, monkeypatch, module, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}.*pip install "minmax-entropy\[train\]"'):
        run(create(), shapes, output=tmp_path / "run")


def test_without_output_there_are_no_curves(shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(create(), shapes).log


# Interruptions


RESUMED = Recipe(lr=2e-3, batch_size=4, erasing_steps=2, ema_decay=0.9, clip_grad=1.0)


def resumable(output, resume=True, checkpoint_steps=1):
    """A training with every kind of state: dropout, augmentation, erasing, moving average, momentum."""
    model = create(**RANDOM)
    data = SyntheticShapes(length=12, size=SIZE, num_classes=2)
    options = dict(transform=noisy, valid=data, output=output, checkpoint_steps=checkpoint_steps)
    return model, run(model, data, RESUMED, epochs=2, resume=resume, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    model, result = resumable(output, resume=False, checkpoint_steps=1000)
    return state(model), figures(result), result.best_epoch


def assert_same_end(output, uninterrupted):
    model, result = resumable(output)
    assert same(state(model), uninterrupted[0]) and figures(result) == uninterrupted[1]
    assert result.best_epoch == uninterrupted[2]
    with (output / "log.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    assert rows == uninterrupted[1]
    assert same(state(mme.create_model(f"local-dir:{output / 'model'}")), uninterrupted[0])
    assert not (output / "checkpoints").exists()


def in_a_process(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_killed_at_random_moments(tmp_path, uninterrupted):
    """Ten times, and resumed each time."""
    rng = random.Random(0)
    killed = 0
    while killed < 10:
        process = in_a_process(resumable, tmp_path)
        process.join(rng.uniform(0.05, 0.8))
        if process.is_alive():
            killed += 1
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            shutil.rmtree(tmp_path)  # it came to its end: once more from the beginning
    assert_same_end(tmp_path, uninterrupted)


def die_at(number, output):
    """Train, and die before the `number`-th time that a file or folder is made, renamed or removed."""
    count = 0

    def counted(function):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    for owner, name in ((os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink"), (os, "mkdir")):
        setattr(owner, name, counted(getattr(owner, name)))
    resumable(output)


# Before the first checkpoint has its name, within the removal of an old one, between the two renames of a model, within
# the removal of the last checkpoint.
POINTS = (9, 15, 61, 92)


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[] if number in POINTS else pytest.mark.slow) for number in range(2, 96)]
)
def test_killed_while_writing(tmp_path, uninterrupted, number):
    process = in_a_process(die_at, number, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert_same_end(tmp_path, uninterrupted)


def test_resume_without_a_run_starts_one(tmp_path, uninterrupted, caplog):
    with caplog.at_level(logging.INFO, logger="minmax_entropy"):
        assert_same_end(tmp_path / "new", uninterrupted)
    assert "there is no run in" in caplog.text


def test_a_finished_run_is_not_trained_again(tmp_path, uninterrupted, monkeypatch):
    resumable(tmp_path)
    monkeypatch.setattr(loop.Training, "_train_epoch", lambda *args: pytest.fail("it is trained again"))
    assert_same_end(tmp_path, uninterrupted)


def unfinished(output, shapes, monkeypatch):
    """A run of two epochs that stops after the first."""
    epoch = loop.Training._train_epoch

    def stops(self, *args):
        return epoch(self, *args) if self.progress.epoch == 0 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_train_epoch", stops)
        with contextlib.suppress(ZeroDivisionError):
            run(create(), shapes, epochs=2, output=output)
    assert list((output / "checkpoints").iterdir())


def test_an_unfinished_run_is_not_overwritten(shapes, tmp_path, monkeypatch):
    unfinished(tmp_path, shapes, monkeypatch)
    with pytest.raises(FileExistsError, match=r"holds an unfinished run: go on with it \(--resume\), "):
        run(create(), shapes, epochs=2, output=tmp_path)
    run(create(), shapes, epochs=2, output=tmp_path, resume=True)
    with pytest.raises(FileExistsError, match=r"holds a finished run: go on with it \(--resume\), replace it \("):
        run(create(), shapes, epochs=2, output=tmp_path)


@pytest.mark.parametrize(
    ("model", "recipe", "keywords", "message"),
    [
        ({}, {}, dict(epochs=3), "epochs: it has 2, asked for is 3"),
        ({}, dict(lr=0.5), {}, "settings than its own: recipe.lr: it has 0.002, asked for is 0.5$"),
        ({}, {}, dict(seed=5), "run.seed: it has 0, asked for is 5$"),
        ({}, {}, dict(size=96), "size.*64.*96"),
        (dict(mask_sigma=0.3), {}, {}, "model.mask_sigma: it has 0.5, asked for is 0.3$"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(shapes, tmp_path, monkeypatch, model, recipe, keywords, message):
    unfinished(tmp_path, shapes, monkeypatch)
    recipe = Recipe(**{"lr": 2e-3, "batch_size": 8, **recipe})
    with pytest.raises(ValueError, match=message):
        run(create(**model), shapes, recipe, **{"epochs": 2, "output": tmp_path, "resume": True, **keywords})


def test_a_run_of_an_earlier_version_is_resumed(shapes, tmp_path, monkeypatch):
    """What it did not know stands at its default, and at nothing else."""
    unfinished(tmp_path, shapes, monkeypatch)
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    for part, built in (("model", mme.WSLModel), ("recipe", Recipe)):
        for name, keyword in inspect.signature(built).parameters.items():
            if json.loads(json.dumps(keyword.default, default=str)) == content["settings"][part].get(name, ...):
                del content["settings"][part][name]
    assert "control_weight" not in content["settings"]["model"] and "patience" not in content["settings"]["recipe"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model\.control_weight: it has 0\.0, asked for is 1\.0$"):
        run(create(control_weight=1.0), shapes, epochs=2, output=tmp_path, resume=True)
    assert len(run(create(), shapes, epochs=2, output=tmp_path, resume=True).log) == 2


def test_a_run_is_not_resumed_with_other_images(shapes, tmp_path, monkeypatch):
    unfinished(tmp_path, shapes, monkeypatch)
    other = SyntheticShapes(length=24, size=SIZE, num_classes=2, seed=1)
    with pytest.raises(ValueError, match=r"train\.sha256: it has "):
        run(create(), other, epochs=2, output=tmp_path, resume=True)


def test_a_folder_of_something_else_is_refused_before_the_training(shapes, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="not empty and not a saved model"):
        run(create(), shapes, output=tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_checkpoint_is_chosen_by_its_number(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.latest() is None
    for name in ("step_000000009", "step_000000010", "incomplete_000000099"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoints.latest().name == "step_000000010"


# Streams


class Stream(LabelledStream):
    """Samples of a list, None where one is damaged."""

    def __init__(self, samples, class_names=("a", "b")):
        self.samples, self.class_names = samples, list(class_names)

    def __iter__(self):
        return self.Samples(iter(self.samples))

    def shuffled(self, seed, buffer_size=1000):
        return Stream([self.samples[index] for index in np.random.default_rng(seed).permutation(len(self.samples))])

    def skip(self, count):
        return Stream(self.samples[count:])

    class Samples:
        """Goes on after an error, unlike a generator."""

        def __init__(self, samples):
            self.samples = samples

        def __iter__(self):
            return self

        def __next__(self):
            sample = next(self.samples)
            if sample is None:
                raise DamagedFileError("row 3", "broken")
            return sample


@pytest.fixture(scope="module")
def stream(shapes):
    return Stream([shapes[index] for index in range(24)])


def test_training_on_a_stream(stream, shapes):
    """The same for any number of loader processes."""
    trained = []
    for workers in (0, 1):
        model = create()
        options = dict(steps_per_epoch=2, workers=workers, transform=noisy, valid=stream)
        result = run(model, stream, epochs=2, **options)
        trained.append((state(model), figures(result)))
        assert [row["images"] for row in result.log] == [16, 16]
    assert same(trained[0][0], trained[1][0]) and trained[0][1] == trained[1][1]
    assert 0 < trained[0][1][0]["valid_f1_foreground"] < 1


def test_epochs_of_a_stream_go_on(stream):
    """Each image comes once in each pass over the stream, whatever an epoch is; passes differ in their order."""
    plan = TrainingStream(stream, lambda image: torch.tensor(float(np.array(image, dtype=np.float64).sum())), 2, 9)
    seen = []
    for plan.epoch in range(4):
        for batch in plan:
            seen += batch.images.tolist()
            plan.position = batch.position
    assert len(seen) == 72 and plan.position == (2, 24)
    passes = [seen[:24], seen[24:48], seen[48:]]
    everything = sorted(passes[0])
    assert len(set(everything)) == 24 and all(sorted(one) == everything for one in passes)
    assert passes[0] != passes[1] != passes[2]
    with pytest.raises(ValueError, match="the stream gives no images"):
        next(iter(TrainingStream(Stream([]), noisy, 1, 2)))


def test_an_interrupted_training_on_a_stream(stream, tmp_path, monkeypatch):
    def go(output):
        model = create()
        options = dict(steps_per_epoch=3, checkpoint_steps=1, transform=noisy, output=output, resume=True)
        return model, run(model, stream, epochs=2, **options)

    whole, result = go(tmp_path / "whole")
    step, steps = loop.Training._step, []

    def stops(self):
        steps.append(0)
        return step(self) if len(steps) != 5 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", stops)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path / "parts")
    model, resumed = go(tmp_path / "parts")
    assert same(state(whole), state(model)) and figures(result) == figures(resumed)


def test_shares_of_a_stream(stream):
    """Together the processes have the images of one, each augmented as it would be there."""

    def batches(**shares):
        plan = TrainingStream(stream, noisy, 2, 8, seed=5, **shares)
        plan.epoch, plan.start = 3, 1
        return list(plan)

    (whole,) = batches()
    parts = [batch for process in range(3) for batch in batches(process=process, processes=3, accumulation=2)]
    assert torch.equal(torch.cat([batch.images for batch in parts]), whole.images)
    assert torch.equal(torch.cat([batch.target for batch in parts]), whole.target)
    assert sum(batch.share for batch in parts) == pytest.approx(1.0) and whole.share == 1.0


def test_damaged_images_of_a_stream(stream):
    damaged = Stream([*stream.samples[:3], None, *stream.samples[4:8]])
    with pytest.raises(DamagedFileError, match="row 3 can't be read"):
        run(create(), damaged, steps_per_epoch=1)
    result = run(create(), damaged, steps_per_epoch=1, skip_damaged=True)
    assert result.damaged == ["row 3"] and result.log[0]["images"] == 8
    batch = next(iter(TrainingStream(damaged, noisy, 1, 8, skip_damaged=True)))
    assert batch.images.shape[0] == 8 and [error.path for error in batch.damaged] == ["row 3"]


@pytest.mark.parametrize(
    ("keywords", "recipe", "message"),
    [
        ({}, {}, "a stream needs steps_per_epoch"),
        (dict(steps_per_epoch=2), dict(sampling="balanced"), "can't be balanced"),
        (dict(steps_per_epoch=2), dict(class_weights="balanced"), "can't be balanced"),
        (dict(steps_per_epoch=2, workers=2), {}, "a stream is read by one loader process at most, got workers=2"),
        (dict(steps_per_epoch=0), {}, "steps_per_epoch must be 1 or more, got 0"),
    ],
)
def test_bad_settings_for_a_stream(stream, keywords, recipe, message):
    with pytest.raises(ValueError, match=message):
        run(create(), stream, Recipe(batch_size=8, **recipe), **keywords)


def test_steps_per_epoch_is_for_streams(shapes):
    with pytest.raises(ValueError, match="steps_per_epoch is for streams: an epoch of this data set has 24 images"):
        run(create(), shapes, steps_per_epoch=2)


# Damaged files and small data sets


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


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_file_is_named(files, workers):
    before, path, text = set(multiprocessing.active_children()), None, ""
    try:
        run(create(), files, Recipe(batch_size=3), workers=workers)
    except DamagedFileError as error:  # not pytest.raises, which keeps the frames and so the loader's processes
        path, text = error.path, str(error)
    assert path in (files.name(2), files.name(5))
    assert text.startswith(f"{path} can't be read as an image: ") and len(text.splitlines()) == 1
    assert set(multiprocessing.active_children()) <= before  # they end with the error


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_replaced_and_listed_on_request(files, workers):
    seen = []
    model = create()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    result = run(model, files, Recipe(batch_size=6), workers=workers, skip_damaged=True, epochs=2)
    assert sorted(result.damaged) == [files.name(2), files.name(5)]
    # The next one that can be read: 3 for 2, and 0 for 5.
    preprocess = preprocess_for(model)
    expected = sorted(float(preprocess(files.image(index)).sum()) for index in (0, 0, 1, 3, 3, 4))
    for images in seen:
        assert sorted(float(image.sum()) for image in images) == pytest.approx(expected, rel=1e-4)


def test_damaged_files_of_the_validation(files):
    data = InMemory(noise_images([(SIZE, SIZE)] * 8), [index % 2 for index in range(8)])
    with pytest.raises(DamagedFileError, match=r"2\.png"):
        run(create(), data, valid=files)
    result = run(create(), data, valid=files, skip_damaged=True)
    assert result.damaged == [files.name(2), files.name(5)] and "valid_error" in result.log[0]


def test_all_files_damaged():
    data = InMemory([None] * 4, [0, 1, 0, 1])
    with pytest.raises(TrainingError, match=r"none of the images of a step can be read: \['\d\.png', "):
        run(create(), data, Recipe(batch_size=2), skip_damaged=True)


def test_incomplete_last_batch_of_one(shapes):
    """25 images, 8 a batch; BatchNorm can't train on one image where the feature map is one position."""
    data = SyntheticShapes(length=25, size=SIZE, num_classes=2)
    result = run(create(), data, epochs=2)
    assert [row["images"] for row in result.log] == [24, 24]


@pytest.mark.parametrize(("length", "batch_size", "images"), [(3, 8, 3), (1, 8, 1), (3, 1, 3), (2, 2, 2)])
def test_few_images(length, batch_size, images):
    data = InMemory(noise_images([(128, 128)] * length), [0] * length)
    result = run(create(img_size=128), data, Recipe(lr=1e-4, batch_size=batch_size))
    assert result.log[0]["images"] == images


def test_one_image_that_batch_norm_refuses():
    data = InMemory(noise_images([(SIZE, SIZE)]), [0])
    with pytest.raises(ValueError, match="BatchNorm can't train on a batch of one"):
        run(create(), data)


def test_class_index_out_of_range(shapes):
    with pytest.raises(ValueError, match="the model has 2 classes, the images to train have 6"):
        run(create(), SyntheticShapes(length=24, size=SIZE, num_classes=6))


def test_classes_in_another_order(shapes):
    """They would be trained, or validated, as others without a word."""
    turned = InMemory([shapes.image(index) for index in range(4)], [1, 0, 1, 0], class_names=shapes.class_names[::-1])
    with pytest.raises(ValueError, match=r"the classes of the images to validate are \['columns', 'rows'\], those"):
        run(create(), shapes, valid=turned)
    model = create()
    model.class_names = shapes.class_names
    with pytest.raises(ValueError, match=r"the model's classes are \['rows', 'columns'\], those of the images are"):
        run(model, turned)
    with pytest.raises(ValueError, match=r"the model's classes are \['rows', 'columns'\], those of the images are"):
        evaluate(model, turned)


def test_two_precisions_in_one_process(shapes):
    recipe = Recipe(lr=1e-4, batch_size=8)
    losses = [run(create(), shapes, recipe, precision=precision).log[0]["loss"] for precision in ("no", "bf16", "no")]
    assert losses[0] == losses[2] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_the_model_is_handed_back_after_an_interruption(shapes, tmp_path, monkeypatch):
    """A second call with the same model goes on."""
    model, recipe = create(), Recipe(lr=1e-4, batch_size=8, erasing_steps=2, class_weights="balanced")
    step, steps = loop.Training._step, []

    def stops(self):
        steps.append(0)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_step", stops)
        run(model, shapes, recipe, epochs=2, output=tmp_path)
    assert model.erasing.steps == 0 and model.criterion.class_weights is None
    assert [row["epoch"] for row in run(model, shapes, recipe, epochs=2, output=tmp_path, resume=True).log] == [0, 1]
