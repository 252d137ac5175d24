"""Commands around models: demo, convert, export, list."""

from __future__ import annotations

import argparse
from pathlib import Path

from minmax_entropy import hub
from minmax_entropy.cli.arguments import load, positive, seed, setting
from minmax_entropy.cli.demo import run_demo
from minmax_entropy.factory import list_models
from minmax_entropy.inference.export import export_onnx, save_program
from minmax_entropy.reference import CLASSES, convert_reference_checkpoint
from minmax_entropy.wsl import WSLModel

EXPORTS = {".onnx": export_onnx, ".pt2": save_program}


def add_commands(commands: argparse._SubParsersAction, machine: argparse.ArgumentParser) -> None:
    demo = commands.add_parser("demo", help="train on bundled synthetic images and show results; offline, 2-3 minutes")
    demo.add_argument("--output", default="minmax-entropy-demo", help="folder for pictures and model (%(default)s)")
    demo.add_argument("--seed", type=seed, default=0)
    demo.set_defaults(run=_demo)

    convert = commands.add_parser(
        "convert", help="convert a checkpoint of the authors' implementation to a model of this library"
    )
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help="file written by torch.save, or .safetensors")
    convert.add_argument("--output", required=True, help="folder for the model")
    which = convert.add_mutually_exclusive_group()
    which.add_argument("--classes", nargs="+", metavar="NAME", help="names in the order of the checkpoint's outputs")
    which.add_argument("--data-set", choices=sorted(CLASSES), help="classes of a data set, in alphabetical order")
    convert.add_argument("--modalities", type=positive, default=5, help="maps per class (%(default)s)")
    convert.add_argument(
        "--size", type=positive, help="shorter side in pixels to which smaller images are enlarged; larger ones stay"
    )
    convert.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any keyword of create_model, or kmax, kmin, alpha, dropout",
    )
    convert.set_defaults(run=_convert)

    export = commands.add_parser(
        "export", parents=[machine], help="export a saved model as an ONNX file or a torch.export program"
    )
    export.add_argument("model", metavar="MODEL", help="folder of a saved model, or hf-hub:ORG/NAME")
    export.add_argument("--output", required=True, help=f"file; {' or '.join(EXPORTS)} sets the format")
    export.add_argument("--size", type=positive, help="side of the images in pixels, by default the model's")
    dynamic = export.add_mutually_exclusive_group()
    dynamic.add_argument("--dynamic-size", action="store_true", default=None, help="insist on support for any size")
    dynamic.add_argument("--fixed-size", action="store_false", dest="dynamic_size", help="support one image size only")
    export.set_defaults(run=_export, device="cpu")  # a program is tied to the device that it was exported on

    names = commands.add_parser("list", help="list the curated models")
    names.add_argument("filter", nargs="?", default="", help="shell-style pattern")
    names.set_defaults(run=_list)


def _demo(options: argparse.Namespace) -> int:
    run_demo(Path(options.output), seed=options.seed)
    return 0


def _convert(options: argparse.Namespace) -> int:
    hub.check_target(options.output, WSLModel)
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
        raise ValueError(f"--output must end with {' or '.join(EXPORTS)}, which set the format; got {options.output}")
    model = load(options)
    path = EXPORTS[suffix](model, options.output, img_size=options.size, dynamic_size=options.dynamic_size)
    print(f"{path}: images [B, {model.in_chans}, H, W], normalized with mean {model.data_config['mean']}")
    print(f"and std {model.data_config['std']}, to logits [B, {model.num_classes}] and mask [B, 1, H, W]")
    return 0


def _list(options: argparse.Namespace) -> int:
    print("\n".join(list_models(options.filter)))
    return 0
