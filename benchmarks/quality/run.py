"""Compare methods on one data set, as a small JSON file says: a table over seeds, learning curves, picture grids.

    python benchmarks/quality/run.py benchmarks/quality/shapes.json --output runs/shapes

Every method sees the same number of images. What is in the folder is not trained again, and a run that was interrupted
goes on. Several processes may each do some of the `--seeds`; a last run of all of them then writes the table,
`curves.png` and the pictures of everything.

The file has `data` (as `minmax-entropy train` takes it), `models`, `methods`, `seeds`, `epochs`, and may have
`data_options`, `classes`, `size`, `pretrained`, `plugins`, `settings` (keywords of `create_model` for every method),
`recipe` (`name` and fields), `shots` (a number of images a class, or a list of them: then each has a folder and a table
of its own), `run` (fields of `Run`). `methods` are names of `minmax_entropy.benchmark.methods.METHODS` and of
`variants.py`, or of groups there; `plugins` may register more.
"""

from __future__ import annotations

import argparse
import csv
import json
import runpy
import sys
from pathlib import Path

import torch
from variants import GROUPS, register

from minmax_entropy.benchmark.methods import get_method
from minmax_entropy.benchmark.runs import Benchmark, Combination, run_benchmark
from minmax_entropy.benchmark.tables import markdown, summarize
from minmax_entropy.data import open_split
from minmax_entropy.engine import get_recipe

REQUIRED = {"data", "models", "methods", "seeds", "epochs"}
KNOWN = REQUIRED | {
    *("data_options", "classes", "size", "pretrained", "plugins", "settings", "recipe", "shots", "run"),
}


def read_config(path: Path, data: str | None = None) -> dict:
    """The file's content; `data` takes the place of its own.

    Raises:
        ValueError: a key that is missing or unknown, or that differs between the methods; no list of methods.
    """
    config = json.loads(path.read_text(encoding="utf-8")) | ({} if data is None else {"data": data})
    for text, keys in (("no", REQUIRED - config.keys()), ("unknown", config.keys() - KNOWN)):
        if keys:
            raise ValueError(
                f"{path}: {text} key {min(keys)!r}; it has {sorted(REQUIRED)}, and may have {sorted(KNOWN)}"
            )
    for name, key in (("recipe", "erasing_steps"), ("settings", "preset")):
        if key in config.get(name, {}):
            raise ValueError(f"{path}: {key} is what methods differ in, give it to them and not in {name!r}")
    if not isinstance(config["methods"], list):
        raise ValueError(f"{path}: methods must be a list of names; own ones are registered by a plugin")
    return config


def create_benchmark(config: dict, output: Path, seeds: list[int] | None = None) -> Benchmark:
    """What the file describes."""
    register()
    for plugin in config.get("plugins", ()):
        runpy.run_path(plugin)
    methods = dict.fromkeys(name for entry in config["methods"] for name in GROUPS.get(entry, (entry,)))
    options = config.get("data_options", {})
    train = open_split(config["data"], "train", config.get("classes"), **options)
    others = (
        open_split(config["data"], part, config.get("classes"), **options).with_classes(train.class_names)
        for part in ("valid", "test")
    )
    recipe = dict(config.get("recipe", {}))
    return Benchmark(
        train,
        *others,
        models=config["models"],
        methods=list(methods),
        seeds=config["seeds"] if seeds is None else seeds,
        epochs=config["epochs"],
        recipe=get_recipe(recipe.pop("name", "finetune"), **recipe),
        output=output,
        size=config.get("size", 224),
        settings=config.get("settings", {}),
        pretrained=config.get("pretrained", False),
        run={"cpu": not torch.cuda.is_available(), "progress": False, **config.get("run", {})},
        shots=config.get("shots"),
    )


def write_curves(benchmark: Benchmark, path: Path) -> None:
    """Training and validation error and mean mask while training: a line per method, the mean over the seeds."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for model in benchmark.models:
        for method in benchmark.methods:
            logs = []
            for seed in benchmark.seeds:
                log = Combination(model, method, seed).folder(benchmark.output) / "log.csv"
                if log.is_file():
                    with log.open(newline="", encoding="utf-8") as file:
                        logs.append(list(csv.DictReader(file)))
            if not logs:
                continue
            title = get_method(method).title if len(benchmark.models) == 1 else f"{model}, {get_method(method).title}"
            for panel, key in zip(panels, ("train_error", "valid_error", "mask_area"), strict=True):
                values = [sum(float(row[key]) for row in rows) / len(rows) for rows in zip(*logs, strict=False)]
                panel.plot(values, label=title)
                panel.set(title=key, xlabel="epoch")
    if panels[-1].has_data():
        panels[-1].legend(fontsize=6)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", help="instead of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the file's, or others")
    parser.add_argument("--methods", nargs="+", help="others than the file's")
    parser.add_argument("--epochs", type=int, help="instead of the file's; in a folder of its own")
    args = parser.parse_args()
    config = read_config(args.config, args.data)
    config |= {key: value for key in ("methods", "epochs") if (value := getattr(args, key)) is not None}
    if not isinstance(config.get("shots"), list):
        return run(config, args.output, args.seeds)
    statuses = [run(config | {"shots": n}, args.output / f"shots{n}", args.seeds) for n in config["shots"]]
    return max(statuses, default=0)


def run(config: dict, output: Path, seeds: list[int] | None) -> int:
    """The exit status: 1 where a combination failed."""
    benchmark = create_benchmark(config, output, seeds)
    rows = run_benchmark(benchmark, lambda line: print(line, flush=True))
    print(markdown(summarize(rows)))
    write_curves(benchmark, output / "curves.png")
    return 0 if len(rows) == len(benchmark.combinations()) else 1


if __name__ == "__main__":
    sys.exit(main())
