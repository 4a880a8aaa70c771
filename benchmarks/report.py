"""What the benchmarks print and write: a Markdown table, compact JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table and an empty line."""
    print(markdown(columns, rows), flush=True)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers that are no text are rounded to three digits."""
    lines = [columns, *([shown(cell) for cell in row] for row in rows)]
    cells = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([cells[0], "|---" * len(columns) + "|\n", *cells[1:]])


def shown(value: object) -> str:
    """Three digits that count."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(path: str, found: Any) -> None:
    """``found`` as JSON with four digits, a line for each entry at the top; no path, no file."""
    if not path:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(_short(value))}" for name, value in found.items()]
    Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(name): _short(part) for name, part in value.items()}
    return [_short(part) for part in value] if isinstance(value, (list, tuple)) else value
