"""Files that are written whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """The rows as CSV, with a column per key that any of them has; written as `write_text` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
