"""Each method at the threshold that is best for it on the masks of the validation images, so that none is held back by
the one that it came with: a Markdown table, of test images, from the models that `run.py` trained.

    python benchmarks/quality/thresholds.py benchmarks/quality/photographs.json --output runs/photographs \\
        --methods cam-avg grad-cam layer-cam layer-cam-refined refined
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from run import create_benchmark, read_config

from minmax_entropy.benchmark.methods import ALL_ONES, get_method
from minmax_entropy.benchmark.runs import Combination, saved_model
from minmax_entropy.engine import choose_threshold, preprocess_for
from minmax_entropy.inference.options import Inference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the folder of run.py")
    parser.add_argument("--data", help="instead of the file's")
    parser.add_argument("--methods", nargs="+", help="some of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the file's")
    args = parser.parse_args()
    benchmark = create_benchmark(read_config(args.config, args.data), args.output, args.seeds)
    print("| method | seeds | F1+ % at its own threshold | F1+ % at the chosen one | thresholds of the mask |")
    print("| --- | ---: | ---: | ---: | --- |")
    for model in benchmark.models:
        for method in args.methods or [method for method in benchmark.methods if method != ALL_ONES]:
            own, chosen, thresholds = [], [], []
            inference = Inference(**get_method(method).inference)
            for seed in benchmark.seeds:
                trained = saved_model(benchmark, Combination(model, method, seed)).eval()
                preprocess = preprocess_for(trained, benchmark.size)
                threshold = choose_threshold(trained, benchmark.valid, preprocess, inference=inference).threshold
                test = choose_threshold(trained, benchmark.test, preprocess, inference=inference)
                thresholds.append(threshold)
                own.append(test.f1_foreground_before)
                chosen.append(test.curve[threshold])
            cells = [get_method(method).title, str(len(own)), _cell(own), _cell(chosen)]
            print(f"| {' | '.join(cells)} | {', '.join(f'{each:.2f}' for each in thresholds)} |", flush=True)


def _cell(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
