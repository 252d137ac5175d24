"""Time and peak memory of saving and loading a whole model, as ratios to building it without weights in the same run.

    python benchmarks/loading.py --output docs/results/loading.md

Each figure is of fresh processes, the median of several; rows take turns. Peak memory is the resident set's, less what
the process has before, in units of the weights' size.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch

ROWS = {
    "timm: build": "timm.create_model({backbone!r}, num_classes=100)",
    "timm: build and load": "timm.create_model('local-dir:{timm}')",
    "build": "mme.create_model('wsl_{backbone}', num_classes=100)",
    "load": "mme.create_model('local-dir:{model}')",
    "load, sharded": "mme.create_model('local-dir:{shards}')",
    "build and save": "mme.create_model('wsl_{backbone}', num_classes=100).save_pretrained('{fresh}')",
}
MEASURE = r"""
import json, re, time
from pathlib import Path
import timm, torch
import minmax_entropy as mme
mme.create_model("wsl_test_resnet", num_classes=2)
def peak():  # ru_maxrss would be that of the parent
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
before, start = peak(), time.perf_counter()
{code}
seconds = time.perf_counter() - start
print(json.dumps([seconds, peak() - before]))
"""


def measure(code: str) -> tuple[float, float]:
    """Seconds and bytes of a line of code in a fresh process."""
    command = [sys.executable, "-c", MEASURE.format(code=code)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(output.splitlines()[-1]))


def prepare(backbone: str, folder: Path) -> dict[str, str]:
    """Saved models to load, and the size of the weights."""
    import minmax_entropy as mme

    model = mme.create_model(f"wsl_{backbone}", num_classes=100)
    model.save_pretrained(folder / "model")
    model.save_pretrained(folder / "shards", max_shard_size="20MB")
    timm.models.save_for_hf(timm.create_model(backbone, num_classes=100), folder / "timm", safe_serialization=True)
    return {name: str(folder / name) for name in ("model", "shards", "timm", "fresh")} | {"backbone": backbone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbones", nargs="+", default=["resnet50", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"]
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    command = f"python benchmarks/loading.py --backbones {' '.join(options.backbones)} --turns {options.turns}"
    lines = [
        f"`{command}`, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}. Memory in units of the weights.",
        "",
        "| backbone | row | ms | time, ratio to build | peak memory |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            places = prepare(backbone, Path(folder))
            size = (Path(folder) / "model" / "model.safetensors").stat().st_size
            found: dict[str, list] = {row: [] for row in ROWS}
            for _ in range(options.turns):
                for row, code in ROWS.items():
                    found[row].append(measure(code.format(**places)))
        seconds = {row: statistics.median(each[0] for each in figures) for row, figures in found.items()}
        memory = {row: statistics.median(each[1] for each in figures) / size for row, figures in found.items()}
        for row in ROWS:
            ratio = seconds[row] / seconds["build"]
            lines.append(f"| {backbone} | {row} | {1000 * seconds[row]:.0f} | {ratio:.2f} | {memory[row]:.2f} |")
            print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
