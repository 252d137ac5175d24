"""Commands that use a trained model on images: evaluate, predict."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from minmax_entropy import hub
from minmax_entropy._files import write_csv, write_text
from minmax_entropy.benchmark.grad_cam import METHODS as GRAD_CAMS
from minmax_entropy.benchmark.grad_cam import GradCAM
from minmax_entropy.cli.arguments import add_data_options, flips, load, positive, scales, setting, size, threshold
from minmax_entropy.data import LabelledImages, Preprocess, open_split
from minmax_entropy.data.limits import DEFAULT_PIXELS
from minmax_entropy.data.preprocess import NATIVE
from minmax_entropy.engine import (
    Evaluation,
    Inference,
    ProbabilityChoice,
    ThresholdChoice,
    allow_pixels,
    choose_min_probability,
    choose_threshold,
    create_refinement,
    evaluate,
    evaluate_all_ones,
    list_refinements,
    preprocess_for,
)
from minmax_entropy.engine.cases import case_grid, class_cases, class_table, ranked_cases
from minmax_entropy.engine.diagnosis import warnings_of
from minmax_entropy.engine.faithfulness import Probes
from minmax_entropy.hub.config import figures_as_json
from minmax_entropy.inference.files import expand_paths, predict_files
from minmax_entropy.inference.predictor import Predictor
from minmax_entropy.metrics.names import FOUND, FOUND_LEGEND
from minmax_entropy.report.pictures import save_picture
from minmax_entropy.report.tables import metrics_table
from minmax_entropy.wsl import WSLModel

CASES = 8  # images in a picture


def add_commands(commands: argparse._SubParsersAction, machine: argparse.ArgumentParser) -> None:
    saved = argparse.ArgumentParser(add_help=False, parents=[machine])
    saved.add_argument("--model", required=True, help="folder of a saved model, or hf-hub:ORG/NAME")
    saved.add_argument(
        "--size", type=size, help=f"shorter side of the images in the network, in pixels, or {NATIVE}: their own size"
    )
    saved.add_argument("--threshold", type=threshold, help="mask threshold, instead of the one stored with the model")
    saved.add_argument("--tile", type=positive, metavar="PIXELS", help="split larger images into tiles of this side")
    saved.add_argument("--overlap", type=positive, metavar="PIXELS", help="pixels that tiles share (256, or a quarter)")
    saved.add_argument("--flips", type=flips, default=(), help="average with flipped images: horizontal,vertical,both")
    saved.add_argument(
        "--scales", type=scales, help="average over scales (0.75,1,1.25), not the recommended views; 1 is one pass"
    )
    saved.add_argument("--refine", metavar="NAME", help=f"filter of the masks: {', '.join(list_refinements())}")
    saved.add_argument(
        "--refine-set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="an option of --refine"
    )
    saved.add_argument("--max-pixels", type=positive, help=f"pixels of the largest image to read ({DEFAULT_PIXELS})")

    evaluation = commands.add_parser("evaluate", parents=[saved], help="compute error and localization of a model")
    add_data_options(evaluation)
    evaluation.add_argument("--boxes", action="store_true", help="box metrics, from the boxes of the true masks")
    evaluation.add_argument(
        "--split", choices=("train", "valid", "test"), help="default: test, or valid with --choose-..."
    )
    evaluation.add_argument(
        "--choose-threshold",
        action="store_true",
        help="find the threshold with the highest F1+ on images with masks, and store it with the model",
    )
    evaluation.add_argument(
        "--choose-min-probability",
        type=threshold,
        metavar="SHARE",
        help="find the probability that this share of the images, such as 0.95, reach, and store it with the model: "
        "below it, predict finds nothing",
    )
    evaluation.add_argument(
        "--output",
        help="folder for figures per image and worst, median and best cases, or F1+ by threshold (--choose-threshold)",
    )
    evaluation.add_argument(
        "--judge",
        metavar="MODEL",
        help="plain classifier (preset cam) of the same classes, trained without masks: show which classes it finds in "
        "the marked region and in the rest",
    )
    evaluation.add_argument(
        "--rival", choices=tuple(GRAD_CAMS), help="the same for this map of the judge, cut at as many pixels"
    )
    evaluation.add_argument(
        "--curves", type=positive, default=0, metavar="STEPS", help="judge's insertion and deletion in this many steps"
    )
    evaluation.add_argument("--skip-damaged", action="store_true", help="leave out files that can't be read")
    evaluation.set_defaults(run=_evaluate)

    predict = commands.add_parser("predict", parents=[saved], help="predict class, mask and boxes of image files")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    predict.add_argument("--output", default="predictions", help="folder for overlays and masks (%(default)s)")
    predict.set_defaults(run=_predict)


def _evaluate(options: argparse.Namespace) -> int:
    share = options.choose_min_probability
    chooses = options.choose_threshold or share is not None
    if share is not None and (options.choose_threshold or options.output is not None):
        raise ValueError("--choose-min-probability writes no --output, and goes before or after --choose-threshold")
    if chooses and (options.judge is not None or options.rival is not None or options.curves):
        raise ValueError("--judge, --rival and --curves can't be combined with --choose-...")
    if chooses and options.model.startswith(tuple(set(hub.SOURCES) - {hub.LOCAL})):
        raise ValueError(f"a threshold is stored in a model's folder, {options.model} is not one: save it first")
    model = load(options)
    split = options.split or ("valid" if chooses else "test")
    dataset = open_split(options.data, split, model.class_names, **dict(options.data_option))
    if len(dataset.class_names) != model.num_classes:
        raise ValueError(
            f"{options.model} has {model.num_classes} classes and no names of them, {options.data} has "
            f"{len(dataset.class_names)} for {split}"
        )
    preprocess, inference = _preprocess(options, model), _inference(options)
    reading = dict(skip_damaged=options.skip_damaged, progress=True, inference=inference)
    with allow_pixels(options.max_pixels):
        if options.choose_threshold:
            return _choose_threshold(model, options, choose_threshold(model, dataset, preprocess, **reading), split)
        if share is not None:
            choice = choose_min_probability(model, dataset, preprocess, share=share, **reading)
            return _choose_min_probability(model, options, choice, split)
        probes = _probes(options)
        asked = dict(threshold=options.threshold, boxes=options.boxes or None, probes=probes)
        result = evaluate(model, dataset, preprocess, **asked, **reading)
        name = Path(options.model).name
        table = {name: result.metrics}
        if "f1_foreground" in result.metrics and not result.damaged:
            ones = evaluate_all_ones(dataset, options.boxes or None, empty_classes=model.empty_classes)
            table = {"all-ones": ones, **table}
    print(metrics_table(table))
    if FOUND.keys() & result.metrics.keys():
        judge = "" if probes.judge is None else f" The judge is {probes.name}."
        print(f"\n{metrics_table({name: result.metrics}, headings=FOUND)}\n{FOUND_LEGEND}{judge}")
    print(f"\n{class_table(result, dataset.class_names)}")
    for warning in warnings_of(result, dataset.class_names):
        print(f"warning: {warning}")
    if model.min_probability > 0:
        nothing = sum(row["probability"] < model.min_probability for row in result.rows)
        print(f"{nothing} of {len(result.rows)} images are below min_probability {model.min_probability:g}: no mask")
    _print_damaged(result.damaged)
    if options.output is not None:
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        figures = json.dumps(figures_as_json(result.metrics), indent=2)
        write_text(output / "metrics.json", figures + "\n")
        write_csv(output / "images.csv", result.rows)
        classes = result.by_class().items()
        write_csv(output / "classes.csv", [{"class": dataset.class_names[label], **row} for label, row in classes])
        for title, cases in _cases(result).items() if isinstance(dataset, LabelledImages) else ():
            with allow_pixels(options.max_pixels):
                shown = dict(inference=inference, threshold=options.threshold)
                picture = case_grid({"prediction": model}, dataset, cases, preprocess, **shown)
            save_picture(picture, output / f"{title}.png")
        print(f"{', '.join(sorted(path.name for path in output.iterdir()))} are in {output}")
    return 0


def _cases(result: Evaluation) -> dict[str, list[int]]:
    """Return indices of the worst, median and best images, a few each, and of an image of each class."""
    ranked = ranked_cases(result)
    middle = max((len(ranked) - CASES) // 2, 0)
    parts = {"worst": ranked[:CASES], "median": ranked[middle : middle + CASES], "best": ranked[::-1][:CASES]}
    return parts | {"classes": class_cases(result)}


def _probes(options: argparse.Namespace) -> Probes:
    """Return the `Probes` that the options ask for."""
    if options.judge is None:
        if options.rival is not None or options.curves:
            raise ValueError("--rival and --curves need a --judge")
        return Probes()
    judge = load(options, options.judge)
    rival = None if options.rival is None else GradCAM(judge, options.rival)
    return Probes(judge, Path(options.judge).name, rival, options.curves)


def _print_damaged(paths: list[str]) -> None:
    if paths:
        print(f"skipped {len(paths)} damaged files: {', '.join(paths)}")


def _choose_threshold(model: WSLModel, options: argparse.Namespace, choice: ThresholdChoice, split: str) -> int:
    """Store the threshold with the model, and print what it changes."""
    _print_damaged(choice.damaged)
    if options.output is not None:
        path = Path(options.output) / "thresholds.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"threshold": each, "f1_foreground": figure} for each, figure in choice.curve.items()]
        write_csv(path, rows)
        print(f"{len(rows)} thresholds and their F1+ are in {path}")
    before, model.mask_threshold = model.mask_threshold, choice.threshold
    path = hub.save_settings(model, options.model.removeprefix(hub.LOCAL))
    print(
        f"threshold {choice.threshold:g} instead of {before:g}: F1+ {100 * choice.f1_foreground:.1f} % instead of "
        f"{100 * choice.f1_foreground_before:.1f} % on {choice.images} images of {split}; stored in {path}"
    )
    return 0


def _choose_min_probability(model: WSLModel, options: argparse.Namespace, choice: ProbabilityChoice, split: str) -> int:
    """Store the minimum probability with the model."""
    _print_damaged(choice.damaged)
    model.min_probability = choice.min_probability
    path = hub.save_settings(model, options.model.removeprefix(hub.LOCAL))
    found = f"nothing below a probability of {model.min_probability:g}, by {choice.images} images of {split}"
    print(f"{found}; stored in {path}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    model = load(options)
    paths = expand_paths(options.images, options.output)
    if not paths:
        raise FileNotFoundError(f"no image files in {', '.join(options.images)}")
    failed = False
    _preprocess(options, model)  # refuses a size that the backbone does not take
    inference = _inference(options)
    predictor = Predictor(
        model,
        inference.views_of(model),
        size=options.size,
        tile=options.tile,
        overlap=options.overlap,
        refine=inference.refine,
        threshold=options.threshold,
        max_pixels=options.max_pixels,
    )
    for result in predict_files(predictor, paths, options.output):
        failed |= "error" in result
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


def _preprocess(options: argparse.Namespace, model: WSLModel) -> Preprocess:
    sizes = model.backbone.sizes
    if options.size == NATIVE and options.tile is None and sizes.fixed is not None:
        raise ValueError(
            f"this backbone takes images of {sizes}, not of their own size: leave out --size {NATIVE}, or take them by "
            "tiles of that size (--tile)"
        )
    return preprocess_for(model, options.size)


def _inference(options: argparse.Namespace) -> Inference:
    if options.overlap is not None and options.tile is None:
        raise ValueError("--overlap is that of tiles: give --tile PIXELS with it")
    if options.refine_set and not options.refine:
        raise ValueError("--refine-set gives options of --refine NAME")
    refine = create_refinement(options.refine, **dict(options.refine_set)) if options.refine else None
    return Inference(options.tile, options.overlap, options.flips, options.scales, refine)
