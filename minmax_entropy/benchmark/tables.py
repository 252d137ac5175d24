"""Tables of a benchmark: means over the seeds, by method and by class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from minmax_entropy._files import write_csv, write_text
from minmax_entropy.benchmark.methods import get_method
from minmax_entropy.metrics.names import BY_CLASS, FOUND, FOUND_LEGEND, HEADINGS
from minmax_entropy.report.tables import table_text

SHOWN_BY_CLASS = ("error", "f1_foreground", "border_share", "judge_foreground", "judge_background")


def summarize(rows: Sequence[dict]) -> list[dict]:
    """Return a row per model and method: mean and sample standard deviation of each figure over the seeds.

    Args:
        rows: rows of `run_benchmark`.

    Returns:
        Dictionaries with `model`, `method`, `seeds` (their number), and each figure's mean under its own name and its
        deviation (NaN for one seed) under the name with `_std`.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"]), []).append(row)
    summary = []
    for (model, method), members in groups.items():
        result = {"model": model, "method": method, "seeds": len(members)}
        for key in dict.fromkeys(key for row in members for key in row if key not in ("model", "method", "seed")):
            values = [row[key] for row in members if row.get(key) is not None]
            result[key] = statistics.fmean(values) if values else math.nan
            result[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else math.nan
        summary.append(result)
    return summary


def write_tables(rows: Sequence[dict], output: Path) -> None:
    """Write `table.md` and `table.csv` with a row per model and method, and `runs.csv` with a row per training."""
    summary = summarize(rows)
    output.mkdir(parents=True, exist_ok=True)
    text = markdown(summary) + "\n"
    if any(key in row for row in summary for key in FOUND):
        text += (
            f"\n{markdown(summary, FOUND)}\n\n{FOUND_LEGEND} The judge is the plain classifier, the rival LayerCAM.\n"
        )
    write_text(output / "table.md", text)
    for name, content in (("table.csv", summary), ("runs.csv", rows)):
        write_csv(output / name, content)


def write_classes(results: Sequence[tuple[str, str, str, dict]], class_names: Sequence[str], output: Path) -> None:
    """Write `classes.md` and `classes.csv`: figures by class, averaged over the seeds, and warnings by training.

    Args:
        results: model, method, title and saved results of each training.
        class_names: names of the classes, in their order.
        output: folder to write to.
    """
    found: dict[tuple[str, str], list[dict]] = {}
    warned = []
    for model, method, title, result in results:
        if "classes" in result:
            found.setdefault((model, method), []).append(result["classes"])
        warned += [f"- {title}: {warning}" for warning in result.get("warnings", ())]
    rows = [
        {"model": model, "method": method, "class": name, "seeds": len(seeds), **_mean([one[name] for one in seeds])}
        for (model, method), seeds in found.items()
        for name in class_names
        if all(name in one for one in seeds)
    ]
    write_csv(output / "classes.csv", rows)
    parts = [
        f"## {model}: {BY_CLASS[key]}\n\n{_by_class([row for row in rows if row['model'] == model], key)}"
        for model in dict.fromkeys(model for model, *_ in results)
        for key in SHOWN_BY_CLASS
        if any(key in row for row in rows if row["model"] == model)
    ]
    warnings = ["## Warnings\n\n" + "\n".join(warned)] if warned else []
    write_text(output / "classes.md", "\n\n".join([*parts, *warnings]) + "\n")


def _mean(figures: Sequence[dict]) -> dict[str, float]:
    keys = dict.fromkeys(key for one in figures for key in one)
    known = {key: [one[key] for one in figures if one.get(key) is not None] for key in keys}
    return {key: statistics.fmean(values) for key, values in known.items() if values}


def _by_class(rows: Sequence[dict], key: str) -> str:
    """Return a table with a row per method and a column per class, in percent; for the border, true masks too."""
    names = list(dict.fromkeys(row["class"] for row in rows))
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        cells.setdefault(get_method(row["method"]).title, {})[row["class"]] = row.get(key, math.nan)
        if key == "border_share" and "true_border_share" in row:
            cells.setdefault("true masks", {})[row["class"]] = row["true_border_share"]
    lines = [[title, *(_cell(values.get(name), None) for name in names)] for title, values in cells.items()]
    return table_text([["method", *names], *lines])


def markdown(summary: Sequence[dict], headings: dict[str, str] = HEADINGS) -> str:
    """Return a table of means and, over several seeds, standard deviations, in percent."""
    keys = [key for key in headings if any(key in row for row in summary)]
    summary = [row for row in summary if any(key in row for key in keys)]
    lines = [["model", "method", "seeds", *(headings[key] for key in keys)]]
    for row in summary:
        cells = [_cell(row.get(key), row.get(f"{key}_std")) for key in keys]
        lines.append([row["model"], get_method(row["method"]).title, str(row["seeds"]), *cells])
    return table_text(lines, left=2)


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None or math.isnan(mean):
        return "-"
    spread = "" if deviation is None or math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * mean:.1f}{spread}"
