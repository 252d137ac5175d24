"""Settings of how a training runs on a machine: processes, precision, loader processes, trackers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from minmax_entropy._extras import require

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECKPOINT_STEPS = 1000
PRECISIONS = ("no", "bf16", "fp16")
# Fields of `Run` that do not affect the result.
MACHINE = ("workers", "checkpoint_steps", "trackers", "progress", "title")


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings of how a training runs on a machine; `Recipe` has the settings of what it learns.

    Args:
        seed: seed of the order of the images, augmentation and dropout.
        workers: number of loader processes, which does not affect the result.
        precision: "no" (float32), "bf16" or "fp16".
        steps_per_epoch: steps per epoch for a stream of images, which has no length.
        accumulation: number of batches into which a step of `Recipe.batch_size` images is split, in each process.
        sync_bn: compute BatchNorm statistics over all processes (accelerators only).
        checkpoint_steps: steps between checkpoints within an epoch; each epoch ends with one anyway.
        trackers: trackers of Accelerate, such as "tensorboard" or "wandb".
        cpu: stay on the CPU even if there is an accelerator.
        skip_damaged: replace a file that can't be read by the next image, and list it, instead of raising an error.
        progress: show a progress bar.
        title: text before the progress bar.
    """

    seed: int = 0
    workers: int = 0
    precision: str = "no"
    steps_per_epoch: int | None = None
    accumulation: int = 1
    sync_bn: bool = False
    checkpoint_steps: int = CHECKPOINT_STEPS
    trackers: Sequence[str] = ()
    cpu: bool = False
    skip_damaged: bool = False
    progress: bool = True
    title: str = "train"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        for name in ("accumulation", "checkpoint_steps", "steps_per_epoch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)!r}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers!r}")


class RunKeywords(TypedDict, total=False):
    """Fields of `Run`, as keywords."""

    seed: int
    workers: int
    precision: str
    steps_per_epoch: int | None
    accumulation: int
    sync_bn: bool
    checkpoint_steps: int
    trackers: Sequence[str]
    cpu: bool
    skip_damaged: bool
    progress: bool
    title: str


def create_accelerator(options: Run, output: Path | None) -> Accelerator:
    """Create the `Accelerator` of a run.

    Raises:
        ImportError: Accelerate or Matplotlib is missing (the `[train]` extra), or the package of a tracker.
        ValueError: trackers without an output folder.
    """
    accelerate = require("accelerate", "train", "training")
    if output is not None:
        require("matplotlib", "train", "the picture of the learning curves")
    if options.trackers:
        if output is None:
            raise ValueError("trackers need an output folder")
        available = sorted(tracker.value for tracker in accelerate.tracking.get_available_trackers())
        for name in options.trackers:
            if name not in available:
                raise ImportError(f"no tracker {name!r}: its package is not installed; available: {available}")
    return accelerate.Accelerator(
        mixed_precision=options.precision,
        cpu=options.cpu,
        log_with=list(options.trackers) or None,
        project_dir=None if output is None else str(output),
    )


@contextlib.contextmanager
def own_state() -> Iterator[None]:
    """Reset the state of Accelerate at the end (precision and devices of the whole process), unless an `Accelerator`
    of the caller had set it before."""
    state = require("accelerate.state", "train", "training").AcceleratorState
    is_callers = bool(state._shared_state)
    try:
        yield
    finally:
        if not is_callers:
            state._reset_state()


def share_buffers(accelerator: Accelerator, *modules: nn.Module | None) -> None:
    """Copy the buffers of the first process to all others: BatchNorm statistics differ after a step."""
    if accelerator.num_processes == 1:
        return
    for module in modules:
        for buffer in () if module is None else module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def gather_objects(accelerator: Accelerator, item: object) -> list:
    """Return the item of each process, in the order of the processes."""
    if accelerator.num_processes == 1:
        return [item]
    from accelerate.utils import gather_object

    return gather_object([item])
