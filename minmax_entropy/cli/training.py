"""Commands that train: train, benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from minmax_entropy._registry import unknown_name
from minmax_entropy.benchmark.methods import METHODS
from minmax_entropy.benchmark.runs import Benchmark, run_benchmark
from minmax_entropy.benchmark.tables import markdown, summarize
from minmax_entropy.cli.arguments import add_data_options, positive, seed, setting
from minmax_entropy.data import AUGMENTATIONS, LabelledImages, LabelledStream, few_shots, fold, open_split
from minmax_entropy.engine import RECIPES, Recipe, TrainingResult, fit, get_recipe, preprocess_for
from minmax_entropy.engine.run import CHECKPOINT_STEPS, PRECISIONS
from minmax_entropy.factory import create_model
from minmax_entropy.metrics.names import LEGEND
from minmax_entropy.presets import PRESETS

BENCHMARKED = ["all-ones", "cam-avg", "cam-refined-scales", "refined"]
Images = LabelledImages | LabelledStream
# Keywords that have an option of their own, or come from the data.
SETTINGS_WITH_OPTIONS = {
    "erasing_steps": "--erasing-steps (on from the second epoch)",
    "img_size": "--size",
    "preset": "--preset",
    "pretrained": "--pretrained",
    "num_classes": "--classes",
    "empty_classes": "--empty-classes",
}
BY_METHOD = ("erasing_steps", "preset")  # set by the methods of a benchmark


def add_commands(commands: argparse._SubParsersAction, machine: argparse.ArgumentParser) -> None:
    training = _training_options(machine)
    train = commands.add_parser("train", parents=[training], help="train on a folder of labelled images")
    train.add_argument("--model", default="wsl_resnet50", help="wsl_<timm name> (%(default)s)")
    train.add_argument("--output", default="runs/train", help="folder for model and log (%(default)s)")
    train.add_argument("--preset", default="refined", choices=sorted(PRESETS), help="model settings (%(default)s)")
    train.add_argument(
        "--erasing-steps",
        type=int,
        help="passes of recursive erasing from the second epoch on (with --set decision=classifier)",
    )
    train.add_argument("--folds", type=positive, help="cross-validation: split train and valid into this many folds")
    train.add_argument("--fold", type=int, help="number of the validation fold, from 0")
    train.add_argument("--seed", type=seed, default=0)
    going_on = train.add_mutually_exclusive_group()
    going_on.add_argument("--resume", action="store_true", help="continue the run in --output, if there is one")
    going_on.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    train.set_defaults(run=_train)

    benchmark = commands.add_parser(
        "benchmark", parents=[training], help="train and evaluate models x methods x seeds; write a table and pictures"
    )
    benchmark.add_argument("--models", nargs="+", default=["wsl_resnet50"], metavar="MODEL", help="wsl_<timm name> ...")
    benchmark.add_argument(
        "--methods",
        nargs="+",
        default=BENCHMARKED,
        metavar="METHOD",
        help=f"{', '.join(METHODS)}, or those that a plugin registers",
    )
    benchmark.add_argument("--seeds", nargs="+", type=seed, default=[0], help="random seeds (%(default)s)")
    benchmark.add_argument(
        "--output", default="runs/benchmark", help="folder for tables, pictures and runs; runs in it are resumed"
    )
    benchmark.set_defaults(run=_benchmark)


def _training_options(machine: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return a parser of the options that `train` and `benchmark` share."""
    parser = argparse.ArgumentParser(add_help=False, parents=[machine])
    add_data_options(parser)
    parser.add_argument("--classes", nargs="+", help="use only these classes")
    parser.add_argument(
        "--empty-classes", nargs="*", metavar="NAME", help='classes without an object ("good"); no names to clear them'
    )
    parser.add_argument("--shots", type=positive, help="train on this many images per class, drawn by the seed")
    parser.add_argument(
        "--size", type=positive, default=224, help="side of the training images in pixels (%(default)s)"
    )
    parser.add_argument("--pretrained", action="store_true", help="start from the backbone's pretrained weights")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="any keyword of create_model"
    )
    parser.add_argument("--epochs", type=positive, default=20, help="number of epochs (%(default)s)")
    parser.add_argument("--steps-per-epoch", type=positive, help="steps per epoch of streamed data")
    parser.add_argument("--recipe", default="finetune", choices=sorted(RECIPES), help="training recipe (%(default)s)")
    parser.add_argument("--lr", type=float, help="learning rate, instead of the recipe's")
    parser.add_argument("--batch-size", type=positive, help="images per step, instead of the recipe's")
    parser.add_argument("--augmentation", choices=sorted(AUGMENTATIONS), help="augmentation, instead of the recipe's")
    parser.add_argument("--patience", type=positive, help="stop after this many epochs without a lower error")
    parser.add_argument(
        "--recipe-set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="any field of Recipe"
    )
    workers = 4 if torch.cuda.is_available() else 0
    parser.add_argument("--workers", type=int, default=workers, help="loader processes (%(default)s)")
    parser.add_argument("--precision", default="no", choices=PRECISIONS, help="mixed precision (%(default)s: float32)")
    parser.add_argument("--accumulation", type=positive, default=1, help="batches into which a step's images are split")
    parser.add_argument("--sync-bn", action="store_true", help="compute BatchNorm statistics over all processes")
    parser.add_argument("--checkpoint-steps", type=positive, default=CHECKPOINT_STEPS, help="every %(default)s steps")
    parser.add_argument("--trackers", nargs="+", default=(), metavar="NAME", help="trackers: tensorboard, wandb, ...")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out files that can't be read")
    return parser


def _train(options: argparse.Namespace) -> int:
    _check_settings(options)
    recipe = _recipe(options, erasing_steps=options.erasing_steps)
    train, valid = _training_data(options)
    if (options.folds is None) != (options.fold is None):
        raise ValueError("--folds says how many there are, --fold which of them validates: give both")
    if isinstance(train, LabelledStream) and (options.folds or options.shots):
        raise ValueError("--folds and --shots need data that can be counted, not a stream")
    if options.folds is not None:
        train, valid = fold([train, valid], options.fold, options.folds, options.seed)
    if options.shots is not None:
        train = few_shots(train, options.shots, options.seed)
    torch.manual_seed(options.seed)
    model = create_model(
        options.model,
        pretrained=options.pretrained or None,
        num_classes=len(train.class_names),
        img_size=options.size,
        preset=options.preset,
        **_settings(options, train.class_names),
    )
    if model.in_chans not in (1, 3):
        raise ValueError(f"train reads images in colour or greyscale, in_chans must be 3 or 1, got {model.in_chans}")
    output = Path(options.output)
    count, held = (None if isinstance(part, LabelledStream) else len(part) for part in (train, valid))
    classes = len(train.class_names)
    print(f"{count or 'a stream of'} images of {classes} classes to train, {held or 'a stream'} to validate")
    result = fit(
        model,
        train,
        recipe,
        options.epochs,
        valid=valid,
        output=output,
        resume=options.resume,
        overwrite=options.overwrite,
        size=options.size,
        preprocess=preprocess_for(model, options.size),
        seed=options.seed,
        title=options.model,
        **_run_options(options),
    )
    if result.is_main:
        _print_training(options, output, result)
    return 0


def _print_training(options: argparse.Namespace, output: Path, result: TrainingResult) -> None:
    if result.damaged:
        print(f"skipped {len(result.damaged)} damaged files: {', '.join(result.damaged)}")
    row = result.log[result.best_epoch]
    epochs, error = len(result.log), 100 * row["valid_error"]
    print(f"trained {epochs} epochs in {result.seconds:.0f} s; kept epoch {result.best_epoch} with a validation")
    print(f"error of {error:.1f} %; log and learning curves in {output}, model in {output / 'model'}")
    if result.best_f1_epoch is not None:
        f1 = 100 * result.log[result.best_f1_epoch]["valid_f1_foreground"]
        print(f"best F1+ on the validation masks: {f1:.1f} %, epoch {result.best_f1_epoch}, {output / 'model_best_f1'}")
    same = [f"--plugin {plugin}" for plugin in options.plugin or []]
    same += [f"--data-option {name}={json.dumps(value)}" for name, value in options.data_option]
    print(" ".join(["next: minmax-entropy evaluate --model", str(output / "model"), "--data", options.data, *same]))


def _benchmark(options: argparse.Namespace) -> int:
    for name in BY_METHOD:
        if name in dict(options.set) or name in dict(options.recipe_set):
            raise ValueError(f"{name} is what the --methods differ in: leave it out")
    _check_settings(options)
    train, valid = _training_data(options)
    test = _open(options, "test", train.class_names)
    output = Path(options.output)
    benchmark = Benchmark(
        train,
        valid,
        test,
        options.models,
        options.methods,
        options.seeds,
        options.epochs,
        _recipe(options),
        output,
        options.size,
        _settings(options, train.class_names),
        options.pretrained,
        _run_options(options),
        options.shots,
    )
    rows = run_benchmark(benchmark)
    print(markdown(summarize(rows)))
    print(LEGEND)
    print(f"table.md, table.csv, runs.csv, pictures and runs are in {output}")
    return 0 if len(rows) == len(benchmark.combinations()) else 1


def _settings(options: argparse.Namespace, class_names: Sequence[str]) -> dict:
    """Return keywords of `create_model`."""
    settings = dict(options.set)
    if options.empty_classes is not None:
        for name in options.empty_classes:
            if name not in class_names:
                raise unknown_name("class", name, class_names)
        settings["empty_classes"] = [class_names.index(name) for name in options.empty_classes]
    return settings


def _check_settings(options: argparse.Namespace) -> None:
    for name, option in SETTINGS_WITH_OPTIONS.items():
        if name in dict(options.set):
            raise ValueError(f"give {option} instead of --set {name}=...")


def _recipe(options: argparse.Namespace, **changes: object) -> Recipe:
    names = ("lr", "batch_size", "augmentation", "patience")
    recipe = get_recipe(options.recipe, **{name: getattr(options, name) for name in names}, **changes)
    return dataclasses.replace(recipe, **dict(options.recipe_set))


def _run_options(options: argparse.Namespace) -> dict:
    """Return fields of `Run`."""
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    names = ("workers", "precision", "accumulation", "sync_bn", "checkpoint_steps", "trackers", "skip_damaged")
    names = (*names, "steps_per_epoch")
    return {"cpu": device.type == "cpu", **{name: getattr(options, name) for name in names}}


def _training_data(options: argparse.Namespace) -> tuple[Images, Images]:
    """Return the images to train on and to validate on, whose classes have the same indices."""
    train = open_split(options.data, "train", options.classes, **dict(options.data_option))
    valid = _open(options, "valid", train.class_names)
    if len(train.class_names) == 1:
        raise ValueError(f"{options.data}: all images are of class {train.class_names[0]!r}, two or more are needed")
    return train, valid


def _open(options: argparse.Namespace, split: str, class_names: Sequence[str] | None) -> Images:
    """Return a part of the data, with classes indexed as in training or in the model; some of them may have no
    images."""
    dataset = open_split(options.data, split, options.classes, **dict(options.data_option))
    if class_names is None or isinstance(dataset, LabelledStream):
        return dataset
    return dataset.with_classes(class_names)
