"""Command line: demo, train, benchmark, evaluate, predict, convert, export, list."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence

import torch

from minmax_entropy.cli import models, prediction, training
from minmax_entropy.cli.arguments import machine_options
from minmax_entropy.engine import TrainingError
from minmax_entropy.inference.export import ExportError
from minmax_entropy.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends with one line on the error stream and status 2."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minmax-entropy",
        description="Weakly supervised localization: train with class labels alone, get classes and masks.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    machine = machine_options()
    for module in (training, prediction, models):
        module.add_commands(commands, machine)
    return parser


def _check_device(name: str) -> None:
    if name == "meta":
        raise ValueError("device 'meta' computes nothing")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: {str(error).splitlines()[0]}") from error
