"""Benchmarks that train and evaluate every model with every method and seed alike, as tables and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from minmax_entropy._files import write_text
from minmax_entropy.benchmark.grad_cam import GradCAM
from minmax_entropy.benchmark.methods import ALL_ONES, Method, get_method
from minmax_entropy.benchmark.tables import write_classes, write_tables
from minmax_entropy.data import DamagedFileError, LabelledImages, LabelledStream, few_shots
from minmax_entropy.data.preprocess import preprocess_for
from minmax_entropy.data.subsets import targets_of
from minmax_entropy.engine.cases import MAX_CLASSES, case_grid
from minmax_entropy.engine.checkpoints import compare_settings, fingerprint
from minmax_entropy.engine.diagnosis import warnings_of
from minmax_entropy.engine.evaluate import evaluate, evaluate_all_ones
from minmax_entropy.engine.faithfulness import Probes
from minmax_entropy.engine.loop import TrainingError
from minmax_entropy.engine.recipes import Recipe
from minmax_entropy.engine.run import MACHINE, Run
from minmax_entropy.engine.train import fit
from minmax_entropy.factory import create_model
from minmax_entropy.hub.config import figures_as_json
from minmax_entropy.inference.options import Inference
from minmax_entropy.metrics.names import HEADINGS
from minmax_entropy.presets import resolve_preset
from minmax_entropy.report.pictures import save_picture
from minmax_entropy.wsl import WSLModel

_logger = logging.getLogger(__name__)

SETTINGS_NAME = "benchmark.json"
RESULTS_NAME = "results.json"
PICTURES = 8
JUDGE, RIVAL = "cam-avg", "layer_cam"  # the plain classifier, trained without masks, and a map of it
TRAINING_FIGURES = ("epochs", "images", "lowest_mask_area", "highest_mask_area")


@dataclasses.dataclass(frozen=True)
class Combination:
    """One training of a benchmark."""

    model: str
    method: str
    seed: int

    def folder(self, output: Path) -> Path:
        return output / "runs" / _file_name(self.model) / self.method / f"seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Models and methods to compare, and their training.

    Args:
        train, valid, test: images; `valid` chooses the epoch by the classification error, `test` has masks.
        models: names of models (`wsl_...`).
        methods: names of `METHODS`.
        seeds: seeds of initialization, order and augmentation.
        epochs: epochs of every method, so that each sees the same number of images.
        recipe: recipe of every method, except for fields that the method sets itself; erasing is off unless it does.
        output: folder; models that are there already are not trained again.
        size: side of the training images, and shorter side of the evaluated images.
        settings: keywords of `create_model` for every method; the method's own take precedence.
        pretrained: start from the backbone's pretrained weights.
        run: fields of `Run`, such as `workers`.
        shots: train on this many images per class, drawn anew for each seed.
    """

    train: LabelledImages
    valid: LabelledImages
    test: LabelledImages
    models: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    epochs: int
    recipe: Recipe
    output: Path
    size: int = 224
    settings: dict = dataclasses.field(default_factory=dict)
    pretrained: bool = False
    run: dict = dataclasses.field(default_factory=dict)
    shots: int | None = None

    def combinations(self) -> list[Combination]:
        """Return the combinations in the order of the tables, one seed after the other. The mask of ones has no
        training, and so no randomness: it is only there for the first seed."""
        return [
            Combination(model, method, seed)
            for seed in self.seeds
            for model in self.models
            for method in self.methods
            if method != ALL_ONES or seed == self.seeds[0]
        ]


def run_benchmark(benchmark: Benchmark, say: Callable[[str], None] = print) -> list[dict]:
    """Train and evaluate every combination, and write `table.md`, `table.csv`, `runs.csv`, `classes.md`, `classes.csv`
    and `pictures/`.

    If the plain classifier, "cam-avg", is among the methods, it is the judge of all masks (see `Probes`), and its
    LayerCAM is their rival.

    The tables are rewritten after each combination. Failed combinations are reported, again at the end, and left out
    of the table; the others go on. Without `skip_damaged`, an unreadable file ends it at once: all would meet it.

    Args:
        benchmark: the benchmark to run.
        say: function that is called with a line about each combination.

    Returns:
        A dictionary per combination: `model`, `method`, `seed`, the metrics on the test images, and from the training
        `epochs`, `images`, `lowest_mask_area` and `highest_mask_area` (means over an epoch).

    Raises:
        DamagedFileError: a file can't be read, unless `skip_damaged`.
        ValueError: an unknown method, streams, several processes, or results of other settings in the folder.
    """
    for name in benchmark.methods:
        get_method(name)
    for dataset in (benchmark.train, benchmark.valid, benchmark.test):
        if isinstance(dataset, LabelledStream):
            raise ValueError("a benchmark needs images that it can count and take by index, not a stream")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a benchmark runs in one process; several of them may share the work by their --seeds")
    _check_settings(benchmark)
    combinations = benchmark.combinations()
    rows: dict[Combination, dict] = {}
    failed: list[str] = []
    for number, combination in enumerate(_judges_first(combinations), start=1):
        try:
            rows[combination] = _run(benchmark, combination)
            write_tables([rows[each] for each in combinations if each in rows], benchmark.output)
            write_classes(_results(benchmark), benchmark.test.class_names, benchmark.output)
        except DamagedFileError:
            raise
        except Exception as error:  # a full disk, too little memory, a model that does not take the size, ...
            _logger.debug("%s", _title(combination), exc_info=True)
            name = "" if isinstance(error, TrainingError) else f"{type(error).__name__}: "
            failed.append(f"{_title(combination)}: {name}{error}")
            say(failed[-1])
            rows.pop(combination, None)
            continue
        done = f"{number} of {len(combinations)}"
        say(f"{done}: {_title(combination)}: {', '.join(_figures(rows[combination]))}")
    for model in benchmark.models:
        _write_pictures(benchmark, model)
    if failed:
        say("\n".join([f"{len(failed)} of {len(combinations)} failed:", *failed]))
    return [rows[each] for each in combinations if each in rows]


def _judges_first(combinations: Sequence[Combination]) -> list[Combination]:
    """Return the combinations in the order of training: that of the tables, but with the judge before the others of
    its model and seed."""
    groups: dict[tuple[int, str], list[Combination]] = {}
    for combination in combinations:
        groups.setdefault((combination.seed, combination.model), []).append(combination)
    return [
        one for group in groups.values() for one in sorted(group, key=lambda each: each.method not in (ALL_ONES, JUDGE))
    ]


def _check_settings(benchmark: Benchmark) -> None:
    """Write the settings of all trainings, or compare them with the saved ones; methods may be added, not changed."""
    path, run = benchmark.output / SETTINGS_NAME, dataclasses.asdict(Run(**benchmark.run))
    settings = {
        "epochs": benchmark.epochs,
        "recipe": dataclasses.asdict(benchmark.recipe),
        "size": benchmark.size,
        "shots": benchmark.shots,
        "settings": benchmark.settings,
        "pretrained": benchmark.pretrained,
        "run": {key: value for key, value in run.items() if key not in (*MACHINE, "seed")},
        **{name: fingerprint(getattr(benchmark, name)) for name in ("train", "valid", "test")},
    }
    if path.is_file():
        compare_settings(json.loads(path.read_text(encoding="utf-8")), settings, benchmark.output)
    else:
        benchmark.output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=2) + "\n")
    for combination in benchmark.combinations():
        path = combination.folder(benchmark.output) / RESULTS_NAME
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8")).get("method")
            compare_settings(saved, _definition(combination), path.parent)


def _title(combination: Combination) -> str:
    return f"{combination.model}, {get_method(combination.method).title}, seed {combination.seed}"


def _figures(row: dict) -> list[str]:
    return [f"{heading} {100 * row[key]:.1f}" for key, heading in HEADINGS.items() if key in row]


def _run(benchmark: Benchmark, combination: Combination) -> dict:
    """Return the row of a combination, from its saved results if there are any, else trained and evaluated."""
    row = dataclasses.asdict(combination)
    if combination.method == ALL_ONES:
        return row | evaluate_all_ones(
            benchmark.test,
            skip_damaged=benchmark.run.get("skip_damaged", False),
            empty_classes=benchmark.settings.get("empty_classes", ()),
        )
    path = combination.folder(benchmark.output) / RESULTS_NAME
    has_judge = _has_judge(benchmark, combination)
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if "judge_whole" in saved["figures"] or not has_judge:  # the judge may have been trained since
            return row | saved["figures"]
    model, training = _trained(benchmark, combination)
    result = evaluate(
        model,
        benchmark.test,
        preprocess_for(model, benchmark.size),
        skip_damaged=benchmark.run.get("skip_damaged", False),
        inference=Inference(**get_method(combination.method).inference),
        probes=_probes(benchmark, combination, model) if has_judge else Probes(),
    )
    names = benchmark.test.class_names
    content = {
        "method": _definition(combination),
        "figures": figures_as_json({**result.metrics, **training}),
        "classes": {names[label]: figures_as_json(figures) for label, figures in result.by_class().items()},
        "warnings": warnings_of(result, names),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")
    return row | content["figures"]


def _has_judge(benchmark: Benchmark, combination: Combination) -> bool:
    """Return whether the plain classifier of the same seed has been trained, or will be for this combination."""
    own = dataclasses.replace(combination, method=JUDGE)
    is_trained = _trained_as(combination) == own or (own.folder(benchmark.output) / RESULTS_NAME).is_file()
    return JUDGE in benchmark.methods and is_trained


def _probes(benchmark: Benchmark, combination: Combination, model: nn.Module) -> Probes:
    """Return the `Probes` of the masks, with the judge."""
    judge = saved_model(benchmark, dataclasses.replace(combination, method=JUDGE))
    judge = judge.to(next(model.parameters()).device)
    return Probes(judge, get_method(JUDGE).title, GradCAM(judge, RIVAL))


def _definition(combination: Combination) -> dict:
    """Return the settings of a method, and of the one whose weights it takes."""
    own, trained = (get_method(each.method) for each in (combination, _trained_as(combination)))
    definitions = [{**dataclasses.asdict(one), "settings": _resolved(one.settings)} for one in (own, trained)]
    return {**definitions[0], "trained_as": definitions[1] if trained is not own else None}


def _resolved(settings: dict) -> dict:
    """Replace the name of a preset by its current settings."""
    settings = dict(settings)
    return resolve_preset(settings.pop("preset", None), settings)


def _trained(benchmark: Benchmark, combination: Combination) -> tuple[WSLModel | GradCAM, dict]:
    """Return the trained model of a combination, and figures of its training."""
    own = _trained_as(combination)
    model = _create(benchmark, own)
    train = benchmark.train
    if benchmark.shots is not None:
        train = few_shots(train, benchmark.shots, combination.seed)
    result = fit(
        model,
        train,
        dataclasses.replace(benchmark.recipe, **{"erasing_steps": 0, **get_method(own.method).recipe}),
        benchmark.epochs,
        valid=benchmark.valid,
        output=own.folder(benchmark.output),
        resume=True,
        size=benchmark.size,
        preprocess=preprocess_for(model, benchmark.size),
        valid_masks=False,
        seed=combination.seed,
        title=_title(own),
        **benchmark.run,
    )
    areas = [row["mask_area"] for row in result.log]
    images = sum(row["images"] for row in result.log)
    figures = dict(zip(TRAINING_FIGURES, (len(result.log), images, min(areas), max(areas)), strict=True))
    return _with_mask(model, get_method(combination.method)), figures


def _trained_as(combination: Combination) -> Combination:
    """Return the combination whose weights this one takes."""
    return dataclasses.replace(combination, method=get_method(combination.method).trained_as or combination.method)


def _create(benchmark: Benchmark, combination: Combination) -> WSLModel:
    torch.manual_seed(combination.seed)
    settings = {**benchmark.settings, **get_method(combination.method).settings}
    return create_model(
        combination.model,
        pretrained=benchmark.pretrained or None,
        num_classes=len(benchmark.train.class_names),
        img_size=benchmark.size,
        **settings,
    )


def _with_mask(model: WSLModel, method: Method) -> nn.Module:
    for name, value in method.evaluated_with.items():
        setattr(model, name, value)
    return model if method.grad_cam is None else GradCAM(model, method.grad_cam)


def _results(benchmark: Benchmark) -> list[tuple[str, str, str, dict]]:
    """Return model, method, title and saved results of each combination."""
    results = []
    for each in benchmark.combinations():
        path = each.folder(benchmark.output) / RESULTS_NAME
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        results.append((each.model, each.method, _title(each), result))
    return results


# Pictures


def _write_pictures(benchmark: Benchmark, model: str) -> None:
    """Draw the masks of each method, with the first seed, on the same test images of every class, together and by
    method, unless all pictures are there."""
    runs = {method: Combination(model, method, benchmark.seeds[0]) for method in benchmark.methods}
    runs = {method: run for method, run in runs.items() if (run.folder(benchmark.output) / RESULTS_NAME).is_file()}
    folder, name = benchmark.output / "pictures", _file_name(model)
    paths = {method: folder / f"{name}_{method}.png" for method in runs}
    together = folder / f"{name}.png"
    if all(path.is_file() for path in (*paths.values(), *([together] if len(runs) > 1 else []))):
        return
    chosen = _readable(benchmark.test)
    found = {method: saved_model(benchmark, run) for method, run in runs.items()}
    grids = {path: {get_method(method).title: found[method]} for method, path in paths.items()}
    if len(found) > 1:
        grids[together] = {get_method(method).title: one for method, one in found.items()}
    for path, models in grids.items():
        preprocess = preprocess_for(next(iter(models.values())), benchmark.size)
        save_picture(case_grid(models, benchmark.test, chosen, preprocess), path)


def _readable(dataset: LabelledImages) -> list[int]:
    """Choose about `PICTURES` readable images, evenly over the data set and at least one of each class."""
    classes: dict[int, list[int]] = {}
    for index, target in enumerate(targets_of(dataset)):
        classes.setdefault(target, []).append(index)
    each, chosen = max(PICTURES // len(classes), 1), []
    for _, indices in sorted(classes.items())[:MAX_CLASSES]:
        of_class: list[int] = []
        for index in indices[:: max(len(indices) // each, 1)]:
            with contextlib.suppress(DamagedFileError):
                dataset[index]
                of_class.append(index)
        chosen += of_class[:each]
    return chosen


def saved_model(benchmark: Benchmark, combination: Combination) -> WSLModel | GradCAM:
    """Return the model that `run_benchmark` trained for a combination, with the mask used in its evaluation."""
    method = get_method(combination.method)
    folder = _trained_as(combination).folder(benchmark.output) / "model"
    return _with_mask(create_model(f"local-dir:{folder}"), method)


def _file_name(model: str) -> str:
    return re.sub(r"[^\w.-]", "_", model)
