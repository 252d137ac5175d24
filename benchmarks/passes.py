"""Time and peak memory of inference and of a training step, as ratios to the bare timm backbone in the same run.

    python benchmarks/passes.py --backbone resnet18 --size 224 --batch 8 --output docs/results/passes.md
    python benchmarks/passes.py --backbone vit_small_patch16_224 --batch 64 --precision bf16 --channels-last --compile

Rows are timed in turns, so that a slow spell of the machine meets all of them; the median counts. Peak memory is that
of a fresh process for each row (resident set; on a GPU the allocator's peak), less what model and images take.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

import minmax_entropy as mme
from minmax_entropy.inference.views import recommended_views, see

CLASSES = 100
# What each row runs; None is the bare timm model with its own head.
ROWS = {
    "bare backbone, forward": None,
    "localize": dict(call="localize"),
    'localize, `preset="refined"`': dict(call="localize", preset="refined"),
    "its views, no image closer": dict(call="views", preset="refined", evaluation_zoom=None),
    "its views, each image closer": dict(call="views", preset="refined", evaluation_zoom=dict(below=1.0)),
    "eval forward": dict(call="forward"),
    "eval forward with X-": dict(call="forward", background=True),
    "bare backbone, training step": None,
    "CAM, training step": dict(call="step", preset="cam"),
    "step": dict(call="step"),
    # A training with the preset takes one half of its steps each way.
    'step, `preset="refined"`, with the margin': dict(call="step", preset="refined", reflect_margin=1.0),
    'step, `preset="refined"`, without': dict(call="step", preset="refined", reflect_margin=0.0),
    "step, checkpoint_passes": dict(call="step", checkpoint_passes=True),
    "step, 4 erasing passes": dict(call="step", erasing_steps=4),
    "step, 4 erasing passes, checkpoint_passes": dict(call="step", erasing_steps=4, checkpoint_passes=True),
}


def build(row: str, options: argparse.Namespace) -> Callable[[], None]:
    """The work of a row, as a function without arguments."""
    torch.manual_seed(0)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    images = images.contiguous(memory_format=layout)
    autocast = functools.partial(torch.autocast, options.device, torch.bfloat16, enabled=options.precision == "bf16")
    target = torch.arange(options.batch, device=options.device) % CLASSES
    if ROWS[row] is None:
        training = row.endswith("step")
        net = (
            timm.create_model(options.backbone, num_classes=CLASSES)
            .to(options.device, memory_format=layout)
            .train(training)
        )
        _allocate_gradients(net if training else None)
        if options.compile:
            net.compile()

        def bare() -> None:
            with torch.set_grad_enabled(training), autocast():
                logits = net(images)
                loss = torch.nn.functional.cross_entropy(logits, target)
            if training:
                loss.backward()

        return bare
    settings = dict(ROWS[row])
    call, background = settings.pop("call"), settings.pop("background", None)
    settings = {"preset": "area", **settings}
    model = mme.create_model(f"wsl_{options.backbone}", num_classes=CLASSES, **settings)
    model.to(options.device, memory_format=layout).train(call == "step")
    _allocate_gradients(model if call == "step" else None)
    if options.compile:
        model.compile()

    def work() -> None:
        if call == "step":
            with autocast():
                loss = model(images, target).loss
            loss.backward()
            return
        with torch.inference_mode(), autocast():
            if call == "localize":
                model.localize(images)
            elif call == "views":
                see(model, images, recommended_views(model))
            else:
                model(images, background=background)

    return work


def _allocate_gradients(net: torch.nn.Module | None) -> None:
    """Gradients exist before the first step and are added to: they belong to the model, not to the step."""
    for parameter in () if net is None else net.parameters():
        parameter.grad = torch.zeros_like(parameter)


def peak_memory(row: str, options: argparse.Namespace) -> float:
    """MiB that the work of a row takes at its peak, on top of model, gradients and images."""
    work = build(row, options)
    if options.device == "cuda":
        work()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 2**10


def time_rows(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of every row, timed in turns."""
    works = {row: build(row, options) for row in ROWS}
    seconds: dict[str, list[float]] = {row: [] for row in ROWS}
    for turn in range(options.turns + 1):
        for row, work in works.items():
            started = time.perf_counter()
            work()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[row].append(time.perf_counter() - started)
    return {row: statistics.median(values) for row, values in seconds.items()}


def _flags(options: argparse.Namespace) -> str:
    precision = "" if options.precision == "no" else f" --precision {options.precision}"
    return precision + " --channels-last" * options.channels_last + " --compile" * options.compile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="the model's and the bare network's forward")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    memory = {}
    for row in ROWS:
        with context.Pool(1) as pool:
            memory[row] = pool.apply(peak_memory, (row, options))
    seconds = time_rows(options)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"`python benchmarks/passes.py --backbone {options.backbone} --size {options.size} --batch {options.batch} "
        f"--turns {options.turns}{_flags(options)}`, {device}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}. Memory is on top of model, gradients and images.",
        "",
        "| row | ms | time, ratio to bare | peak MiB | memory, ratio to bare |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        bare = row if ROWS[row] is None else "bare backbone, " + ("training step" if "step" in row else "forward")
        lines.append(
            f"| {row} | {1000 * seconds[row]:.0f} | {seconds[row] / seconds[bare]:.2f} | {memory[row]:.0f} | "
            f"{memory[row] / max(memory[bare], 1e-9):.2f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)


if __name__ == "__main__":
    main()
