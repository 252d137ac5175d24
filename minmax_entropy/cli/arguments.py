"""Arguments of the commands: their types, and the options that several commands share."""

from __future__ import annotations

import argparse
import ast
import json

import torch

from minmax_entropy import hub
from minmax_entropy._checks import check_threshold
from minmax_entropy.data.preprocess import NATIVE
from minmax_entropy.factory import create_model
from minmax_entropy.inference.views import FLIPS
from minmax_entropy.wsl import WSLModel


def setting(text: str) -> tuple[str, object]:
    """Parse `name=value`; the value is read as JSON or a Python literal if it is one, else as text."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    for read in (json.loads, ast.literal_eval):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    return name, value


def flips(text: str) -> tuple[str, ...]:
    unknown = [name for name in text.split(",") if name not in FLIPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected any of {','.join(FLIPS)}, got {unknown[0]!r}")
    return tuple(text.split(","))


def scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.75,1,1.25, got {text!r}") from None


def threshold(text: str) -> float:
    try:
        value = float(text)
        check_threshold("the threshold", value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number over 0 and below 1, got {text!r}") from None
    return value


def seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def size(text: str) -> int | str:
    try:
        return NATIVE if text == NATIVE else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or {NATIVE}: the images' own size") from None


def machine_options() -> argparse.ArgumentParser:
    """Return a parser of the options for device and plugins."""
    parser = argparse.ArgumentParser(add_help=False)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default_device, help="torch device (%(default)s)")
    parser.add_argument(
        "--plugin",
        action="append",
        metavar="FILE",
        help="Python file to run first; it may register backbones and heads",
    )
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="folder with <class>/<image>, or train.csv, valid.csv and test.csv, or GlaS, CUB-200-2011, Flowers 102; "
        "cub5:FOLDER; hf:NAME; shapes: (bundled synthetic images)",
    )
    parser.add_argument(
        "--data-option", type=setting, action="append", default=[], metavar="NAME=VALUE", help="data reader option"
    )


def load(options: argparse.Namespace, name: str | None = None) -> WSLModel:
    """Return the model of a folder or a source, by default that of `--model`."""
    name = options.model if name is None else name
    source = name if name.startswith(hub.SOURCES) else f"{hub.LOCAL}{name}"
    return create_model(source).to(options.device).eval()
