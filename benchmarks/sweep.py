"""Every timm model as a backbone: build, run in evaluation, train for a step; one row a model, and a page of them all.

    python benchmarks/sweep.py                             # every name; writes docs/backbones.md and its rows
    python benchmarks/sweep.py --filter "vit_tiny*" --seed 7 --size 201 167 --output rows.jsonl

A run that was stopped goes on where it was; one with another seed, size, limit or version of timm or torch starts anew.

Each model runs in a process of its own, with limits of memory and time, as follows:

1. built without values (meta device): parameters, cost of a forward pass, shapes;
2. evaluation at the default size, with values where the model has at most `--max-parameters` and the evaluation takes
   at most `--max-gflops`, else without;
3. evaluation at an odd size (`--size`), or at the nearest one that the model takes, which the error must name;
4. where `--train-gflops` allows, one training step of the whole objective on two images: the losses and the gradients
   must be finite, and a gradient must reach every parameter that asks for one.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import multiprocessing
import queue
import resource
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import minmax_entropy as mme

ROOT = Path(__file__).resolve().parent.parent
ROWS, PAGE_PATH = ROOT / "docs/results/backbones.jsonl", ROOT / "docs/backbones.md"
CLASSES = 3
TRAIN_SIDE = 64  # pixels; more where the model's stride or family asks for it
STEP_FLOPS = 2 * 1.2 * 3  # two images, X- beside X+ and the image, and the backward, as a ratio to an evaluation
GIB = 1 << 30


def check_model(
    name: str,
    seed: int = 0,
    odd_size: tuple[int, int] = (131, 97),
    max_parameters: float = 60e6,
    max_gflops: float = 25.0,
    train_gflops: float = 40.0,
) -> dict:
    """Build and run `wsl_<name>`; a row of the table.

    Raises:
        Exception: whatever goes wrong.
    """
    torch.manual_seed(seed)
    started = time.perf_counter()
    row = describe(name)
    with torch.device("meta"):
        model = create(name)
    backbone = model.backbone
    row["parameters"] = sum(parameter.numel() for parameter in backbone.parameters())
    row["stride"], row["features"] = backbone.reduction, backbone.num_features
    row["default"], row["sizes"] = list(backbone.data_config["input_size"][-2:]), str(backbone.sizes)
    default = tuple(row["default"])
    row["frozen"] = sum(not parameter.requires_grad for parameter in backbone.parameters())
    row["gflops"], row["map"] = evaluate_without_values(model, default)
    is_small = row["parameters"] <= max_parameters and (row["gflops"] or 0) <= max_gflops
    is_small = is_small or row["gflops"] is None  # no other way to run it

    if is_small:
        model = create(name)
    row["device"] = "cpu" if is_small else "meta"
    if is_small:
        row["map"] = evaluate(model, default)
    nearest = model.backbone.sizes.nearest(*odd_size)
    if nearest != odd_size:
        require_named(model, odd_size, nearest)
    row["odd"] = list(nearest)
    if nearest != default:
        evaluate(model, nearest)

    step_gflops = STEP_FLOPS * (row["gflops"] or 0) / math.prod(default)  # a pixel
    if is_small and model.backbone.sizes.fixed and step_gflops * math.prod(default) > train_gflops:
        model = build_smaller(name, default) or model
    side = smallest_training_size(model)
    row["trained"] = list(side) if is_small and step_gflops * math.prod(side) <= train_gflops else None
    if row["trained"]:
        row["losses"] = train_step(model, side)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def describe(name: str) -> dict:
    """What timm says about a model."""
    card = timm.get_pretrained_cfg(name)
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    return {"name": name, "family": family, "licence": card.license if card and card.has_weights else None}


def create(name: str, **options) -> mme.WSLModel:
    return mme.create_model(f"wsl_{name}", num_classes=CLASSES, **options)


def build_smaller(name: str, default: tuple[int, int]) -> mme.WSLModel | None:
    """The model built for half its default size, where that works."""
    try:
        return create(name, img_size=(default[0] // 2, default[1] // 2))
    except ValueError:
        return None


def evaluate_without_values(model: mme.WSLModel, size: tuple[int, int]) -> tuple[float | None, list[int] | None]:
    """GFLOPs of an evaluation (2 for a multiplication with its addition), and the size of the feature map.

    None where the model can't run without values.
    """
    if any(isinstance(layer, nn.LSTM) for layer in model.modules()):
        return None, None  # minutes without values
    try:
        model.requires_grad_(False)  # pit's tokens and the counter don't go together otherwise
        with FlopCounterMode(display=False) as counter:
            found = evaluate(model, size)
    except RuntimeError:
        return None, None  # runs with values, or fails there
    return round(counter.get_total_flops() / 1e9, 2), found


def images_of(model: mme.WSLModel, count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, model.in_chans, *size, device=next(model.parameters()).device)


def evaluate(model: mme.WSLModel, size: tuple[int, int]) -> list[int]:
    """Check a forward pass; the size of the feature map."""
    model.eval()
    with torch.no_grad():
        output = model(images_of(model, 1, size))
    assert output.logits.shape == (1, CLASSES), output.logits.shape
    assert output.mask.shape == (1, 1, *size), output.mask.shape
    assert output.localizer_maps.shape[:2] == (1, CLASSES), output.localizer_maps.shape
    if not output.mask.is_meta:
        assert output.logits.isfinite().all() and 0 <= output.mask.min() and output.mask.max() <= 1
    return list(output.localizer_maps.shape[2:])


def require_named(model: mme.WSLModel, size: tuple[int, int], nearest: tuple[int, int]) -> None:
    """A size that can't work must be refused, and the size that can must be named."""
    try:
        model.eval()(images_of(model, 1, size))
    except ValueError as error:
        assert all(str(side) in str(error) for side in nearest), f"{error}: names another size than {nearest}"
    else:
        raise AssertionError(f"images of {size} were taken, the nearest size is {nearest}")


def smallest_training_size(model: mme.WSLModel) -> tuple[int, int]:
    """So large that the classifier's smaller input is one that the model takes."""
    sizes = model.backbone.sizes
    side = max(TRAIN_SIDE, 2 * sizes.stride, 2 * sizes.smallest)
    return sizes.nearest(side, side)


def train_step(model: mme.WSLModel, size: tuple[int, int]) -> dict[str, float]:
    """Forward and backward of the whole objective; its terms."""
    model.train()
    output = model(images_of(model, 2, size), torch.tensor([0, CLASSES - 1]))
    output.loss.backward()
    losses = {key: round(value.item(), 4) for key, value in output.losses.items()}
    assert all(map(math.isfinite, losses.values())), f"losses {losses}"
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [key for key, gradient in gradients.items() if gradient is None]
    assert not missing, f"no gradient reaches {len(missing)} parameters: {missing[:5]}"
    bad = [key for key, gradient in gradients.items() if not gradient.isfinite().all()]
    assert not bad, f"{len(bad)} gradients are not finite: {bad[:5]}"
    assert any(gradient.any() for key, gradient in gradients.items() if "backbone" in key), "all gradients are 0"
    return losses


# One process a model.


def run_one(name: str, options: dict, memory: int, connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    torch.set_num_threads(1)
    try:
        row = {**check_model(name, **options), "status": "pass"}
    except MemoryError:
        row = {**describe(name), "status": "fail", "error": f"more than {memory / GIB:.0f} GiB of memory"}
    except BaseException as error:
        row = {**describe(name), "status": "fail", "error": f"{type(error).__name__}: {error}"[:500]}
    connection.send(row)


def run_all(names: Iterable[str], options: dict, workers: int, memory: int, timeout: float, output: Path) -> None:
    """Rows are added to `output` as they come."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "minmax_entropy"])
    waiting: queue.Queue[str] = queue.Queue()
    for name in names:
        waiting.put(name)
    total, lock, counts = waiting.qsize(), threading.Lock(), collections.Counter()

    def work() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=run_one, args=(name, options, memory, sender), daemon=True)
            process.start()
            sender.close()
            try:
                if receiver.poll(timeout):
                    row = receiver.recv()
                else:
                    row = {**describe(name), "status": "fail", "error": f"more than {timeout:.0f} s"}
            except EOFError:
                row = {**describe(name), "status": "fail", "error": "the process was killed"}
            process.kill()
            process.join()
            with lock, output.open("a") as file:
                file.write(json.dumps(row) + "\n")
                counts[row["status"]] += 1
                done = sum(counts.values())
                if row["status"] == "fail" or done % 50 == 0:
                    print(f"{done}/{total} {dict(counts)} {name} {row.get('error', '')}", flush=True)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The page.

PAGE = """# Backbones

Generated by `python benchmarks/sweep.py` (seed {seed}) with timm {timm} and torch {torch}: every name of
`timm.list_models()`, as `wsl_<name>`. {passed} of {total} pass.

- **{evaluated}** ran with values in evaluation at their default size and at {odd} pixels (or at the nearest size that
  they take, which the error message names); the other {meta}, larger than {max_parameters:.0f} million parameters or
  {max_gflops:.0f} GFLOPs, without values (shapes only).
- **{trained}** took a training step of the whole objective with finite losses and gradients, a gradient for every
  parameter that asks for one (so that distributed training waits for none), at most {train_gflops:.0f} GFLOPs a step.
- `out_index` and `neck="fpn"` are for all; `output_stride=8` (the smallest model of each family was built) for
{dilated}.

*Stride* and *features* are those of the map that the heads get, as timm's own classifier does where that is a map;
`out_index`, `output_stride` and `neck="fpn"` change them. *Default* is the size that timm's weights were trained at.
*Sizes*: what images may measure; where it is one size, `img_size=(height, width)` builds the model for another.
*Licence* is that of timm's default weights ("-": no weights in timm). *Run* is C (evaluated on a CPU, with values), T
(trained as well) or M (without values).

| name | parameters (M) | stride | features | default | sizes | licence | run |
| --- | ---: | ---: | ---: | --- | --- | --- | --- |
"""


def write_page(rows: list[dict], path: Path, options: dict) -> None:
    passed = [row for row in rows if row["status"] == "pass"]
    dilated = ", ".join(sorted(filter(None, map(family_if_dilated, smallest_of_families(passed)))))
    text = PAGE.format(
        timm=timm.__version__,
        torch=torch.__version__.split("+")[0],
        passed=len(passed),
        total=len(rows),
        evaluated=sum(row["device"] == "cpu" for row in passed),
        meta=sum(row["device"] == "meta" for row in passed),
        trained=sum(row["trained"] is not None for row in passed),
        odd=" x ".join(map(str, options["odd_size"])),
        seed=options["seed"],
        max_parameters=options["max_parameters"] / 1e6,
        max_gflops=options["max_gflops"],
        train_gflops=options["train_gflops"],
        dilated=textwrap.fill(dilated, 120, initial_indent="  ", subsequent_indent="  "),
    )
    for row in rows:
        if row["status"] != "pass":
            text += f"| {row['name']} | | | | | | {row['licence'] or '-'} | **fails**: {row['error']} |\n"
            continue
        run = "T" if row["trained"] else "C" if row["device"] == "cpu" else "M"
        default = " x ".join(map(str, row["default"]))
        text += (
            f"| {row['name']} | {row['parameters'] / 1e6:.1f} | {row['stride']} | {row['features']} | {default} "
            f"| {row['sizes']} | {row['licence'] or '-'} | {run} |\n"
        )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def smallest_of_families(rows: list[dict]) -> list[dict]:
    rows = sorted(rows, key=lambda row: row["parameters"], reverse=True)
    return list({row["family"]: row for row in rows}.values())


def family_if_dilated(row: dict) -> str | None:
    """The family's name, if its model can be built with a stride of 8."""
    try:
        with torch.device("meta"):
            backbone = mme.create_backbone(row["name"], output_stride=8)
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return None
    return row["family"] if backbone.reduction == 8 < row["stride"] else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", nargs="*", default=[""], help="shell-style patterns of timm names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(131, 97), metavar=("HEIGHT", "WIDTH"), help="odd size")
    parser.add_argument("--max-parameters", type=float, default=60e6, help="largest model that runs with values")
    parser.add_argument(
        "--max-gflops", type=float, default=25.0, help="largest evaluation of an image that runs with values"
    )
    parser.add_argument("--train-gflops", type=float, default=40.0, help="largest training step")
    parser.add_argument("--workers", type=int, default=2, help="models at a time, a thread each")
    parser.add_argument("--memory", type=float, default=9.0, help="limit for a model, in GiB")
    parser.add_argument("--timeout", type=float, default=600.0, help="limit for a model, in seconds")
    parser.add_argument("--output", type=Path, default=None, help=f"rows ({ROWS.relative_to(ROOT)} for all names)")
    parser.add_argument("--page", type=Path, default=None, help=f"page ({PAGE_PATH.relative_to(ROOT)} for all names)")
    args = parser.parse_args()

    names = sorted({name for pattern in args.filter for name in timm.list_models(pattern)})
    if names == sorted(timm.list_models()):
        args.output, args.page = args.output or ROWS, args.page or PAGE_PATH
    if args.output is None:
        args.output = Path(tempfile.mkdtemp()) / "rows.jsonl"
    options = {key: getattr(args, key) for key in ("seed", "max_parameters", "max_gflops", "train_gflops")}
    options["odd_size"] = tuple(args.size)
    rows = open_rows(args.output, options)
    todo = [name for name in names if rows.get(name, {}).get("status") != "pass"]
    print(f"{len(names)} models, {len(names) - len(todo)} of them done already; rows go to {args.output}", flush=True)
    run_all(todo, options, args.workers, int(args.memory * GIB), args.timeout, args.output)
    rows = read_rows(args.output)[1]
    write_rows(args.output, options, rows)
    rows = [rows[name] for name in names]
    if args.page is not None:
        write_page(rows, args.page, options)
    failed = [row["name"] for row in rows if row["status"] != "pass"]
    print(f"{len(rows) - len(failed)} of {len(rows)} pass; failed: {failed}")
    return bool(failed)


# The file of rows: a line of settings, then a line a model.


def settings_of(options: dict) -> dict:
    versions = {"timm": timm.__version__, "torch": torch.__version__.split("+")[0]}
    return json.loads(json.dumps({**options, **versions}))


def open_rows(path: Path, options: dict) -> dict[str, dict]:
    """The rows of an earlier run with the same settings; the file is started anew otherwise."""
    if path.exists():
        settings, rows = read_rows(path)
        if settings == settings_of(options):
            return rows
        print(f"{path} is of other settings ({settings}), it starts anew", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, options, {})
    return {}


def read_rows(path: Path) -> tuple[dict, dict[str, dict]]:
    """The settings, and the last row of each name."""
    settings, *rows = map(json.loads, path.read_text().splitlines())
    return settings, {row["name"]: row for row in rows}


def write_rows(path: Path, options: dict, rows: dict[str, dict]) -> None:
    lines = [settings_of(options), *(rows[name] for name in sorted(rows))]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
