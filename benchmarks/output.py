"""Rows to JSON and to tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qdiff_fx.atomic import write_text

PLAIN_WIDTH = 140
Column = tuple[str, Callable[[Any], str]]


def write_json(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the list of rows; the file appears only when it is complete. What JSON cannot say becomes null."""
    write_text(path, json.dumps([_finite(row) for row in rows], indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(digits: int, scale: float = 1.0) -> Callable[[float | None], str]:
    """A formatter for a column of numbers; None is shown as a dash."""
    return lambda value: "–" if value is None else f"{value * scale:.{digits}f}"


def console() -> Console:
    """Standard output: as wide as its terminal, or wide enough for our tables where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def print_table(title: str, columns: Mapping[str, Column], rows: Sequence[Any], caption: str = "") -> None:
    """A table with one row per object: each column's heading, the attribute it shows, and its format."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for heading, (_, format_) in columns.items():
        table.add_column(heading, justify="left" if format_ is str else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(format_(getattr(row, attribute)) for attribute, format_ in columns.values()))
    console().print(table)
    for row in rows:
        if getattr(row, "error", ""):
            # An error's own words may hold brackets, which are not markup.
            Console(stderr=True).print(Text(f"{row.model} on {row.backend}: {row.error}", style="red"))
