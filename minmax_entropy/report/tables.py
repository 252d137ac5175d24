"""Tables in Markdown, aligned for the terminal as well."""

from __future__ import annotations

from collections.abc import Sequence

from minmax_entropy.metrics.names import HEADINGS


def metrics_table(
    rows: dict[str, dict[str, float]],
    extra: Sequence[str] = (),
    headings: dict[str, str] = HEADINGS,
    of: str = "method",
) -> str:
    """Return a Markdown table with a row per method and a column per metric, aligned for the terminal as well.

    Args:
        rows: metrics by the name of the method; missing ones are shown as "-".
        extra: further keys, shown unformatted.
        headings: headings of the metrics, in the order of the columns.
        of: heading of the column of names.
    """
    keys = [key for key in headings if any(key in metrics for metrics in rows.values())]
    lines = [[of, *(headings[key] for key in keys), *extra]]
    for name, metrics in rows.items():
        figures = [f"{100 * metrics[key]:.1f}" if key in metrics else "-" for key in keys]
        lines.append([name, *figures, *(str(metrics.get(key, "-")) for key in extra)])
    return table_text(lines)


def table_text(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format cells as a Markdown table, with the first line as its header, aligned for the terminal as well.

    Args:
        lines: cells by line.
        left: number of left-aligned columns.
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([row(lines[0]), row(rule), *(row(line) for line in lines[1:])])
