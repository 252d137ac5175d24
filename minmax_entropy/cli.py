"""The command line: demo, train, evaluate, predict, benchmark, convert, export, list."""

from __future__ import annotations

import argparse
import ast
import csv
import json
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from minmax_entropy import hub
from minmax_entropy.checks import check_threshold
from minmax_entropy.configuration import figures_as_json
from minmax_entropy.data import AUGMENTATIONS, LabelledImages, LabelledStream, few_shots, fold, open_split
from minmax_entropy.demo import run_demo
from minmax_entropy.engine import (
    RECIPES,
    Inference,
    Recipe,
    ThresholdChoice,
    TrainingError,
    TrainingResult,
    allow_pixels,
    choose_threshold,
    create_refinement,
    evaluate,
    evaluate_all_ones,
    fit,
    get_recipe,
    list_refinements,
    preprocess_for,
)
from minmax_entropy.engine.benchmark import Benchmark, markdown, run_benchmark, summarize
from minmax_entropy.engine.inference import FLIPS
from minmax_entropy.engine.limits import DEFAULT_PIXELS
from minmax_entropy.engine.methods import METHODS
from minmax_entropy.engine.pictures import save_picture
from minmax_entropy.engine.predict import expand_paths, predict_files
from minmax_entropy.engine.report import LEGEND, case_grid, metrics_table, ranked_cases
from minmax_entropy.engine.train import CHECKPOINT_STEPS, PRECISIONS
from minmax_entropy.export import ExportError, export_onnx, save_program
from minmax_entropy.factory import create_model, list_models
from minmax_entropy.model import WSLModel
from minmax_entropy.presets import PRESETS
from minmax_entropy.reference import CLASSES, convert_reference_checkpoint
from minmax_entropy.version import __version__

WORST_CASES = 8
BENCHMARKED = ["all-ones", "cam-avg", "area", "area-erasing"]
Images = LabelledImages | LabelledStream
EXPORTS = {".onnx": export_onnx, ".pt2": save_program}
# Keywords that have an option of their own, or come from the data.
SETTINGS_WITH_OPTIONS = {
    "erasing_steps": "--erasing-steps (on from the second epoch)",
    "img_size": "--size",
    "preset": "--preset",
    "pretrained": "--pretrained",
    "num_classes": "--classes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a wrong input ends with one line on the error stream and status 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("minmax_entropy").setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        _check_device(getattr(options, "device", "cpu"))
        for plugin in getattr(options, "plugin", None) or []:
            runpy.run_path(plugin)
        return options.run(options)
    except (OSError, TypeError, ValueError, ImportError, TrainingError, ExportError) as error:
        print(f"minmax-entropy {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _train(options: argparse.Namespace) -> int:
    _check_settings(options)
    recipe = _recipe(options, erasing_steps=options.erasing_steps)
    train, valid = _training_data(options)
    if (options.folds is None) != (options.fold is None):
        raise ValueError("--folds says how many there are, --fold which of them validates: give both")
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
        **dict(options.set),
    )
    if model.in_chans != 3:
        raise ValueError(f"train reads RGB images, in_chans must be 3, got {model.in_chans}")
    output = Path(options.output)
    print(f"{len(train)} images of {len(train.class_names)} classes to train, {len(valid)} to validate")
    result = fit(
        model,
        train,
        recipe,
        options.epochs,
        valid=valid,
        output=output,
        resume=options.resume,
        size=options.size,
        preprocess=preprocess_for(model, options.size),
        seed=options.seed,
        title=options.model,
        **_run_options(options),
    )
    if result.is_main:
        _print_training(options, output, result)
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    _check_settings(options)
    train, valid = _training_data(options)
    test = _open(options, "test", train.class_names)
    output = Path(options.output)
    benchmark = Benchmark(
        few_shots(train, options.shots) if options.shots is not None else train,
        valid,
        test,
        options.models,
        options.methods,
        options.seeds,
        options.epochs,
        _recipe(options),
        output,
        options.size,
        dict(options.set),
        options.pretrained,
        _run_options(options),
    )
    rows = run_benchmark(benchmark)
    print(markdown(summarize(rows)))
    print(LEGEND)
    print(f"table.md, table.csv, runs.csv, pictures and runs are in {output}")
    return 0 if len(rows) == len(benchmark.combinations()) else 1


def _check_settings(options: argparse.Namespace) -> None:
    for name, option in SETTINGS_WITH_OPTIONS.items():
        if name in dict(options.set):
            raise ValueError(f"give {option} instead of --set {name}=...")


def _recipe(options: argparse.Namespace, **changes: object) -> Recipe:
    names = ("lr", "batch_size", "augmentation", "patience")
    return get_recipe(
        options.recipe, **{name: getattr(options, name) for name in names}, **changes, **dict(options.recipe_set)
    )


def _run_options(options: argparse.Namespace) -> dict:
    """Fields of `Run`."""
    device = torch.device(options.device)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    names = ("workers", "precision", "accumulation", "sync_bn", "checkpoint_steps", "trackers", "skip_damaged")
    names = (*names, "steps_per_epoch")
    return {"cpu": device.type == "cpu", **{name: getattr(options, name) for name in names}}


def _training_data(options: argparse.Namespace) -> tuple[Images, Images]:
    """Images to train and to validate, whose classes have the same indices."""
    train = open_split(options.data, "train", options.classes, **dict(options.data_option))
    valid = _open(options, "valid", train.class_names)
    if len(train.class_names) == 1:
        raise ValueError(f"{options.data}: all images are of class {train.class_names[0]!r}, two or more are needed")
    return train, valid


def _open(options: argparse.Namespace, split: str, class_names: Sequence[str] | None) -> Images:
    """A part of the data whose classes are indexed as the training's, or the model's; some may be missing in it."""
    dataset = open_split(options.data, split, options.classes, **dict(options.data_option))
    if class_names is None or isinstance(dataset, LabelledStream):
        return dataset
    return dataset.with_classes(class_names)


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
    print(f"next: minmax-entropy evaluate --model {output / 'model'} --data {options.data}")


def _evaluate(options: argparse.Namespace) -> int:
    if options.choose_threshold and options.model.startswith(tuple(set(hub.SOURCES) - {hub.LOCAL})):
        raise ValueError(f"a threshold is stored in a model's folder, {options.model} is none: save it to one first")
    model = _load(options)
    split = options.split or ("valid" if options.choose_threshold else "test")
    dataset = open_split(options.data, split, model.class_names, **dict(options.data_option))
    if len(dataset.class_names) != model.num_classes:
        raise ValueError(
            f"{options.model} has {model.num_classes} classes and no names of them, {options.data} has "
            f"{len(dataset.class_names)} for {split}"
        )
    preprocess, inference = preprocess_for(model, options.size), _inference(options)
    reading = dict(skip_damaged=options.skip_damaged, progress=True, inference=inference)
    with allow_pixels(options.max_pixels):
        if options.choose_threshold:
            return _choose_threshold(model, options, choose_threshold(model, dataset, preprocess, **reading), split)
        result = evaluate(
            model, dataset, preprocess, threshold=options.threshold, boxes=options.boxes or None, **reading
        )
        table = {Path(options.model).name: result.metrics}
        if "f1_foreground" in result.metrics and not result.damaged:
            table = {"all-ones": evaluate_all_ones(dataset, options.boxes or None), **table}
    print(metrics_table(table))
    if result.damaged:
        print(f"skipped {len(result.damaged)} damaged files: {', '.join(result.damaged)}")
    if options.output is not None:
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics.json").write_text(json.dumps(figures_as_json(result.metrics), indent=2) + "\n")
        with (output / "images.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in result.rows for key in row)))
            writer.writeheader()
            writer.writerows(result.rows)
        for title, worst in (("worst", True), ("best", False)) if isinstance(dataset, LabelledImages) else ():
            cases = ranked_cases(result, worst)[:WORST_CASES]
            with allow_pixels(options.max_pixels):
                shown = dict(inference=inference, threshold=options.threshold)
                picture = case_grid({"prediction": model}, dataset, cases, preprocess, **shown)
            save_picture(picture, output / f"{title}.png")
        print(f"{', '.join(sorted(path.name for path in output.iterdir()))} are in {output}")
    return 0


def _choose_threshold(model: WSLModel, options: argparse.Namespace, choice: ThresholdChoice, split: str) -> int:
    """Store the threshold with the model, and say what it brings."""
    before, model.mask_threshold = model.mask_threshold, choice.threshold
    path = hub.save_settings(model, options.model.removeprefix(hub.LOCAL))
    print(
        f"threshold {choice.threshold:g} instead of {before:g}: F1+ {100 * choice.f1_foreground:.1f} % instead of "
        f"{100 * choice.f1_foreground_before:.1f} % on {choice.images} images of {split}; stored in {path}"
    )
    return 0


def _predict(options: argparse.Namespace) -> int:
    model = _load(options)
    paths = expand_paths(options.images, options.output)
    if not paths:
        raise FileNotFoundError(f"no image files in {', '.join(options.images)}")
    failed = False
    how = dict(inference=_inference(options), threshold=options.threshold, max_pixels=options.max_pixels)
    for result in predict_files(model, paths, options.output, preprocess_for(model, options.size), **how):
        failed |= "error" in result
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


def _inference(options: argparse.Namespace) -> Inference:
    if options.refine_set and not options.refine:
        raise ValueError("--refine-set gives options of --refine NAME")
    refine = create_refinement(options.refine, **dict(options.refine_set)) if options.refine else None
    return Inference(options.tile, options.overlap, options.flips, options.scales, refine)


def _convert(options: argparse.Namespace) -> int:
    hub.check_target(options.output)
    classes = options.classes or (CLASSES[options.data_set] if options.data_set else None)
    model = convert_reference_checkpoint(
        options.checkpoint,
        class_names=classes,
        modalities=options.modalities,
        short_side=options.size,
        **dict(options.set),
    )
    model.save_pretrained(options.output)
    names = ", ".join(model.class_names or []) or "without names"
    print(f"{model.config['backbone']}, {model.num_classes} classes ({names}), mask_sigma {model.mask_sigma:g}")
    print(f"model in {options.output}; next: minmax-entropy predict IMAGE... --model {options.output}")
    return 0


def _export(options: argparse.Namespace) -> int:
    suffix = Path(options.output).suffix
    if suffix not in EXPORTS:
        raise ValueError(f"--output ends with {' or '.join(EXPORTS)}, which say the format; got {options.output}")
    model = _load(options)
    path = EXPORTS[suffix](model, options.output, img_size=options.size, dynamic_size=options.dynamic_size)
    print(f"{path}: images [B, {model.in_chans}, H, W], normalized with mean {model.data_config['mean']}")
    print(f"and std {model.data_config['std']}, to logits [B, {model.num_classes}] and mask [B, 1, H, W]")
    return 0


def _demo(options: argparse.Namespace) -> int:
    run_demo(Path(options.output), seed=options.seed)
    return 0


def _list(options: argparse.Namespace) -> int:
    print("\n".join(list_models(options.filter)))
    return 0


def _load(options: argparse.Namespace) -> WSLModel:
    source = options.model if options.model.startswith(hub.SOURCES) else f"{hub.LOCAL}{options.model}"
    return create_model(source).to(options.device).eval()


def _setting(text: str) -> tuple[str, object]:
    """`name=value`, the value as JSON or a Python literal where it is that, else as text."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    for read in (json.loads, ast.literal_eval):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    return name, value


def _flips(text: str) -> tuple[str, ...]:
    unknown = [name for name in text.split(",") if name not in FLIPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected any of {','.join(FLIPS)}, got {unknown[0]!r}")
    return tuple(text.split(","))


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.75,1,1.25, got {text!r}") from None


def _threshold(text: str) -> float:
    try:
        value = float(text)
        check_threshold("the threshold", value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number over 0 and below 1, got {text!r}") from None
    return value


def _check_device(name: str) -> None:
    if name == "meta":
        raise ValueError("device 'meta' computes nothing")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: {str(error).splitlines()[0]}") from error


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="folder of <class>/<image>, of train.csv, valid.csv and test.csv, or of GlaS, CUB-200-2011, Flowers 102; "
        "cub5:FOLDER; hf:NAME; shapes: (embedded images)",
    )
    parser.add_argument(
        "--data-option", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="of the data's reader"
    )


def _training_options(shared: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What `train` and `benchmark` have in common."""
    parser = argparse.ArgumentParser(add_help=False, parents=[shared])
    _add_data_options(parser)
    parser.add_argument("--classes", nargs="+", help="take only these classes")
    parser.add_argument("--shots", type=_positive, help="train on so many images a class, drawn by the seed")
    parser.add_argument(
        "--size", type=_positive, default=224, help="side of the training images in pixels (%(default)s)"
    )
    parser.add_argument("--pretrained", action="store_true", help="start from the backbone's pretrained weights")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="any keyword of create_model"
    )
    parser.add_argument("--epochs", type=_positive, default=20, help="%(default)s")
    parser.add_argument("--steps-per-epoch", type=_positive, help="of data that is streamed")
    parser.add_argument("--recipe", default="finetune", choices=sorted(RECIPES), help="%(default)s")
    parser.add_argument("--lr", type=float, help="learning rate instead of the recipe's")
    parser.add_argument("--batch-size", type=_positive, help="images a step instead of the recipe's")
    parser.add_argument("--augmentation", choices=sorted(AUGMENTATIONS), help="instead of the recipe's")
    parser.add_argument("--patience", type=_positive, help="stop after so many epochs without a lower error")
    parser.add_argument(
        "--recipe-set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="any field of Recipe"
    )
    workers = 4 if torch.cuda.is_available() else 0
    parser.add_argument("--workers", type=int, default=workers, help="loader processes (%(default)s)")
    parser.add_argument("--precision", default="no", choices=PRECISIONS, help="of the passes (%(default)s: float32)")
    parser.add_argument("--accumulation", type=_positive, default=1, help="parts a step's images are cut into")
    parser.add_argument("--sync-bn", action="store_true", help="BatchNorm statistics over all processes")
    parser.add_argument("--checkpoint-steps", type=_positive, default=CHECKPOINT_STEPS, help="%(default)s")
    parser.add_argument("--trackers", nargs="+", default=(), metavar="NAME", help="tensorboard, wandb, ...")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out files that can't be read")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minmax-entropy",
        description="Weakly supervised localization: train with class labels alone, get classes and masks.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train on embedded images and show what comes out; no network, 2 minutes")
    demo.add_argument("--output", default="minmax-entropy-demo", help="folder for pictures and model (%(default)s)")
    demo.add_argument("--seed", type=_seed, default=0)
    demo.set_defaults(run=_demo)

    shared = argparse.ArgumentParser(add_help=False)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    shared.add_argument("--device", default=default_device, help="torch device (%(default)s)")
    shared.add_argument(
        "--plugin",
        action="append",
        metavar="FILE",
        help="Python file to run first; it may register backbones and heads",
    )

    training = _training_options(shared)
    train = commands.add_parser("train", parents=[training], help="train on a folder of labelled images")
    train.add_argument("--model", default="wsl_resnet50", help="wsl_<timm name> (%(default)s)")
    train.add_argument("--output", default="runs/train", help="folder for model and log (%(default)s)")
    train.add_argument("--preset", default="area", choices=sorted(PRESETS), help="%(default)s")
    train.add_argument("--erasing-steps", type=int, help="passes of recursive erasing from the second epoch on")
    train.add_argument("--folds", type=_positive, help="cross-validation: cut what trains and validates into so many")
    train.add_argument("--fold", type=int, help="the fold that validates, from 0")
    train.add_argument("--seed", type=_seed, default=0)
    train.add_argument("--resume", action="store_true", help="go on with the run in --output, if there is one")
    train.set_defaults(run=_train)

    benchmark = commands.add_parser(
        "benchmark", parents=[training], help="train and evaluate models x methods x seeds, write a table and pictures"
    )
    benchmark.add_argument("--models", nargs="+", default=["wsl_resnet50"], metavar="MODEL", help="wsl_<timm name> ...")
    benchmark.add_argument(
        "--methods", nargs="+", default=BENCHMARKED, choices=METHODS, metavar="METHOD", help=", ".join(METHODS)
    )
    benchmark.add_argument("--seeds", nargs="+", type=_seed, default=[0], help="%(default)s")
    benchmark.add_argument(
        "--output", default="runs/benchmark", help="folder for tables, pictures and runs; resumed where it has any"
    )
    benchmark.set_defaults(run=_benchmark)

    saved = argparse.ArgumentParser(add_help=False, parents=[shared])
    saved.add_argument("--model", required=True, help="folder of a saved model, or hf-hub:ORG/NAME")
    saved.add_argument("--size", type=_positive, help="shorter side of the images as the network sees them")

    saved.add_argument("--threshold", type=_threshold, help="of the mask, instead of the one stored with the model")
    saved.add_argument("--tile", type=_positive, metavar="PIXELS", help="take larger images by tiles of this side")
    saved.add_argument("--overlap", type=_positive, metavar="PIXELS", help="of neighbouring tiles (256, or a quarter)")
    saved.add_argument("--flips", type=_flips, default=(), help="average with flipped images: horizontal,vertical,both")
    saved.add_argument("--scales", type=_scales, default=(1.0,), help="average over sizes: 0.75,1,1.25")
    saved.add_argument("--refine", metavar="NAME", help=f"filter of the masks: {', '.join(list_refinements())}")
    saved.add_argument(
        "--refine-set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="an option of --refine"
    )
    saved.add_argument("--max-pixels", type=_positive, help=f"largest image that is read ({DEFAULT_PIXELS})")

    evaluation = commands.add_parser("evaluate", parents=[saved], help="error and localization of a saved model")
    _add_data_options(evaluation)
    evaluation.add_argument("--boxes", action="store_true", help="box metrics, by the boxes of the true masks")
    evaluation.add_argument(
        "--split", choices=("train", "valid", "test"), help="test, or valid with --choose-threshold, by default"
    )
    evaluation.add_argument(
        "--choose-threshold",
        action="store_true",
        help="find the threshold of the highest F1+ on images with masks, and store it with the model",
    )
    evaluation.add_argument("--output", help="folder for figures per image, worst and best cases")
    evaluation.add_argument("--skip-damaged", action="store_true", help="leave out files that can't be read")
    evaluation.set_defaults(run=_evaluate)

    predict = commands.add_parser("predict", parents=[saved], help="class, mask and boxes of image files")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    predict.add_argument("--output", default="predictions", help="folder for overlays and masks (%(default)s)")
    predict.set_defaults(run=_predict)

    convert = commands.add_parser(
        "convert", help="a checkpoint of the authors' implementation to a model of this library"
    )
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help="file of torch.save or .safetensors")
    convert.add_argument("--output", required=True, help="folder for the model")
    which = convert.add_mutually_exclusive_group()
    which.add_argument("--classes", nargs="+", metavar="NAME", help="names in the order of the checkpoint's outputs")
    which.add_argument("--data-set", choices=sorted(CLASSES), help="classes of a data set, in alphabetical order")
    convert.add_argument("--modalities", type=_positive, default=5, help="maps per class (%(default)s)")
    convert.add_argument(
        "--size", type=_positive, help="shorter side in pixels to which smaller images are enlarged; larger ones stay"
    )
    convert.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any keyword of create_model, or kmax, kmin, alpha, dropout",
    )
    convert.set_defaults(run=_convert)

    export = commands.add_parser(
        "export", parents=[shared], help="an ONNX file or a torch.export program of a saved model"
    )
    export.add_argument("model", metavar="MODEL", help="folder of a saved model, or hf-hub:ORG/NAME")
    export.add_argument("--output", required=True, help=f"file; {' or '.join(EXPORTS)} says the format")
    export.add_argument("--size", type=_positive, help="side of the images in pixels, that of the model by default")
    dynamic = export.add_mutually_exclusive_group()
    dynamic.add_argument("--dynamic-size", action="store_true", default=None, help="insist on images of any size")
    dynamic.add_argument("--fixed-size", action="store_false", dest="dynamic_size", help="images of one size only")
    export.set_defaults(run=_export, device="cpu")  # a program stays on the device that it was made on

    names = commands.add_parser("list", help="names of the curated models")
    names.add_argument("filter", nargs="?", default="", help="shell-style pattern")
    names.set_defaults(run=_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
