"""Recipes, training, evaluation, prediction, and the pictures and tables made of them."""

import csv
import logging
import math
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import minmax_entropy as mme
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.data import DamagedFileError, ImageFiles, LabelledImages, Record, SyntheticShapes
from minmax_entropy.engine import (
    RECIPES,
    Recipe,
    TrainingError,
    evaluate,
    evaluate_all_ones,
    fit,
    get_recipe,
    pictures,
    predict_images,
    preprocess_for,
    step_decay,
    train,
    warmup_cosine,
)
from minmax_entropy.engine.pictures import grid, mask_picture, overlay, save_picture
from minmax_entropy.engine.predict import expand_paths, predict_files
from minmax_entropy.engine.report import case_grid, metrics_table, ranked_cases
from minmax_entropy.metrics import dice

SIZE = 64  # feature maps of 2 x 2 for the localizer, of one position for the classifier
RECIPE = Recipe(lr=2e-3, batch_size=8)


def create(name="wsl_test_resnet", num_classes=2, **keywords):
    torch.manual_seed(0)
    return mme.create_model(name, num_classes=num_classes, **{"img_size": SIZE, **keywords})


@pytest.fixture(scope="module")
def shapes():
    return SyntheticShapes(length=24, size=SIZE, num_classes=2)


def run(model, data, recipe=RECIPE, **keywords):
    keywords = {"progress": False, **keywords}
    if "seconds" not in keywords:
        keywords.setdefault("epochs", 1)
    return fit(model, data, preprocess_for(model), recipe, **keywords)


class InMemory(LabelledImages):
    """Images, targets and masks from lists."""

    def __init__(self, images, targets, masks=None, class_names=("a", "b")):
        self.images, self.targets, self.class_names = images, targets, list(class_names)
        self.masks = masks or [None] * len(images)

    def __len__(self):
        return len(self.images)

    def image(self, index):
        if self.images[index] is None:
            raise DamagedFileError(f"{index}.png", "broken")
        return self.images[index]

    def target(self, index):
        return self.targets[index]

    def mask(self, index):
        return self.masks[index]


def noise_images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]


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


def test_learning_rate_of_the_groups_in_training(shapes):
    recipe = Recipe(optimizer="sgd", schedule="step", lr=0.01, head_lr_factor=5.0, batch_size=8)
    optimizer = recipe.build_optimizer(create())
    assert train._set_lr(optimizer, 0.02) == 0.02
    assert {group["lr"] for group in optimizer.param_groups} == {0.02, 0.1}


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


def test_log(shapes, tmp_path):
    """A row per epoch, the same in the result and in the file, which starts anew with each training."""
    path = tmp_path / "deep" / "log.csv"
    for epochs in (3, 2):
        result = run(create(), shapes, epochs=epochs, valid=shapes, log_path=path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == list(range(epochs))
        for row, logged in zip(rows, result.log, strict=True):
            assert {name: float(value) for name, value in row.items()} == pytest.approx(logged)
    row = result.log[0]
    assert row["images"] == 24 and 0 <= row["train_error"] <= 1 and 0 <= row["valid_error"] <= 1
    assert row["loss"] == pytest.approx(row["localizer"] + row["foreground"] + row["background"], rel=1e-5)
    assert 0 < row["mask_area"] < 1 and 0 < row["valid_mask_area"] < 1


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


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_same_weights(shapes, workers):
    """Augmentation of both random number generators included."""
    trained = []
    for seed in (3, 3, 4):
        model = create(localizer=dict(name="wildcat", dropout=0.5))
        preprocess = preprocess_for(model)

        def transform(image, preprocess=preprocess):
            import random

            tensor = preprocess(image) + 0.1 * torch.randn(())
            return tensor.flip(2) if random.random() < 0.5 else tensor

        fit(model, shapes, transform, RECIPE, epochs=2, seed=seed, workers=workers, progress=False)
        trained.append(state(model))
    assert same(trained[0], trained[1]) and not same(trained[0], trained[2])


def test_best_epoch_is_the_first_of_equals(shapes, monkeypatch):
    errors, seen = iter([0.5, 0.25, 0.25, 0.75]), []

    def fake(model, *args, **kwargs):
        seen.append(state(model))
        return SimpleNamespace(metrics={"error": next(errors), "mask_area": 0.5}, damaged=[])

    monkeypatch.setattr(train, "evaluate", fake)
    model = create()
    result = run(model, shapes, epochs=4, valid=shapes)
    assert result.best_epoch == 1 and [row["valid_error"] for row in result.log] == [0.5, 0.25, 0.25, 0.75]
    assert same(seen[1], state(model)) and not same(seen[1], seen[2])


def test_last_epoch_is_kept_on_request(shapes, monkeypatch):
    errors, seen = iter([0.25, 0.5]), []

    def fake(model, *args, **kwargs):
        seen.append(state(model))
        return SimpleNamespace(metrics={"error": next(errors), "mask_area": 0.5}, damaged=[])

    monkeypatch.setattr(train, "evaluate", fake)
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
def test_loss_that_is_not_finite_names_the_epoch(shapes, monkeypatch, tmp_path, epoch):
    model = create()

    def poison(*args, **kwargs):
        model.localizer.get_parameter(next(name for name, _ in model.localizer.named_parameters())).data.fill_(math.nan)
        return SimpleNamespace(metrics={"error": 0.5, "mask_area": 0.5}, damaged=[])

    if epoch == 0:
        poison()
    monkeypatch.setattr(train, "evaluate", poison)
    with pytest.raises(TrainingError, match=rf"epoch {epoch}: the loss is nan \(.*localizer=nan.*\); lower"):
        run(model, shapes, epochs=3, valid=shapes, log_path=tmp_path / "log.csv")
    assert (tmp_path / "log.csv").exists() == (epoch > 0)  # the epochs before are logged


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


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by a hundredth of a second whenever the trainer looks at it."""
    state = SimpleNamespace(now=0.0)

    def perf_counter():
        state.now += 0.01
        return state.now

    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=perf_counter))
    return state


def test_training_time(shapes, clock):
    result = run(create(), shapes, RECIPE, seconds=0.4)
    assert 0.4 <= result.seconds < 0.5 and len(result.log) > 1
    assert 0 <= result.log[-1]["lr"] < RECIPE.lr / 10  # the schedule runs over the time


def test_validation_does_not_count_as_training_time(shapes, clock, monkeypatch):
    def slow(*args, **kwargs):
        clock.now += 100
        return SimpleNamespace(metrics={"error": 0.5, "mask_area": 0.5}, damaged=[])

    monkeypatch.setattr(train, "evaluate", slow)
    result = run(create(), shapes, seconds=0.4, valid=shapes)
    assert len(result.log) > 1 and result.seconds < 0.5 + 0.01 * len(result.log)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (dict(epochs=None), "give either epochs or seconds"),
        (dict(epochs=1, seconds=1.0), "give either epochs or seconds"),
        (dict(epochs=0), "epochs or seconds must be over 0, got 0"),
        (dict(seconds=-1.0), "epochs or seconds must be over 0, got -1.0"),
    ],
)
def test_bad_budget(shapes, budget, message):
    with pytest.raises(ValueError, match=message):
        run(create(), shapes, **budget)


def test_class_baseline_trains(shapes, caplog):
    """A plain CAM has the localizer's loss alone."""
    result = run(
        create(preset="cam", mask_sigma=1.0, mask_omega=200.0), shapes, Recipe(lr=3e-3, batch_size=8), epochs=2
    )
    assert result.log[0]["loss"] == pytest.approx(result.log[0]["localizer"])
    assert "foreground" not in result.log[0] and 0 < result.log[0]["mask_area"] < 1
    assert not caplog.records  # the mask takes no part in its training


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
def test_damaged_files_are_skipped_and_counted_on_request(files, workers):
    result = run(create(), files, Recipe(batch_size=6), workers=workers, skip_damaged=True, epochs=2)
    assert sorted(result.damaged) == [files.name(2), files.name(5)]
    assert [row["images"] for row in result.log] == [4, 4]


def test_damaged_files_of_the_validation(files, shapes):
    with pytest.raises(DamagedFileError, match=r"2\.png"):
        run(create(), shapes, valid=files)
    result = run(create(), shapes, valid=files, skip_damaged=True)
    assert result.damaged == [files.name(2), files.name(5)] and "valid_error" in result.log[0]


def test_batches_that_are_damaged_whole():
    """Three good images in six batches of two: some batches are empty, some hold one image, which BatchNorm refuses."""
    images = [None] * 12
    images[1], images[4], images[7] = noise_images([(SIZE, SIZE)] * 3)
    data = InMemory(images, [index % 2 for index in range(12)])
    for seed in range(20):  # until two of the three share a batch
        model = create()
        try:
            result = run(model, data, Recipe(batch_size=2), skip_damaged=True, seed=seed)
        except TrainingError:
            continue
        assert result.log[0]["images"] == 2 and len(result.damaged) == 9
        break
    else:
        pytest.fail("no seed puts two good images into a batch")


def test_all_files_damaged():
    data = InMemory([None] * 4, [0, 1, 0, 1])
    with pytest.raises(TrainingError, match=r"epoch 0: none of the images could be read: \['\d\.png', "):
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
    with pytest.raises(ValueError, match=r"target must lie in \[0, 2\)"):
        run(create(), SyntheticShapes(length=24, size=SIZE, num_classes=6))


# Evaluation


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
        image, target, truth, _ = various[index]
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
    assert set(result.metrics) == {"error", "mask_area"} and len(result.rows) == 8


def test_evaluation_without_masks_opens_none(files):
    class Closed(InMemory):
        def mask(self, index):
            raise AssertionError("a mask was opened")

    data = Closed(noise_images([(SIZE, SIZE)] * 2), [0, 1])
    assert evaluate(create(), data, with_masks=False).metrics["error"] in (0, 0.5, 1)


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
    results = list(predict_files(model, [record.image for record in files.records], tmp_path / "out"))
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
    result = next(iter(predict_files(model, [files.records[0].image])))
    assert result["class"] in (0, 1) and "mask" not in result


def test_names_of_outputs_are_unique(tmp_path):
    """The same stem in several folders and with several suffixes, and stems that look like the numbered ones."""
    paths = []
    for name in ("a/x_2.png", "a/x.png", "a/x.jpg", "b/x.png", "a/x.bmp", "a/x.gif", "b/x.gif", "b/x_1.png"):
        paths.append(tmp_path / name)
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(paths[-1])
    results = list(predict_files(create(), [*paths, paths[0]], tmp_path / "out"))
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
    assert [scores[index] for index in ranked_cases(result, worst=False)] == sorted(scores, reverse=True)
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
        fit(model, shapes, preprocess_for(model), Recipe(), epochs=1)
    with pytest.raises(ValueError, match="one class an image is expected here"):
        evaluate(model, shapes)
