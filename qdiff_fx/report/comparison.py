"""The table that sets networks side by side: size, speed, fidelity, layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

MISSING = "–"
COLUMNS = ("network", "file", "s / image", "ε SQNR", "accuracy", "int8 layers", "float layers")


@dataclass(frozen=True)
class NetworkFigures:
    """What was measured of one network; ``None`` where a figure means nothing for it.

    Attributes:
        name: how the row is called.
        file_bytes: size on disk.
        seconds_per_image: median over batches.
        eps_sqnr_db: mean over the steps of the float trajectory.
        accuracy: share of samples a classifier recognises as the class asked for.
        integer_layers, float_layers: how many layers run on integers, and how many do not.
    """

    name: str
    file_bytes: int
    seconds_per_image: float
    eps_sqnr_db: float | None = None
    accuracy: float | None = None
    integer_layers: int | None = None
    float_layers: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def comparison_rows(figures: Sequence[NetworkFigures]) -> list[list[str]]:
    """The table as text: the header, then one row per network."""
    return [list(COLUMNS), *(_cells(row) for row in figures)]


def comparison_table(figures: Sequence[NetworkFigures], title: str = "") -> Table:
    """The same for a terminal."""
    header, *rows = comparison_rows(figures)
    table = Table(title=Text(title) if title else None)
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cells(row: NetworkFigures) -> list[str]:
    return [
        row.name,
        megabytes(row.file_bytes),
        f"{row.seconds_per_image:.4f}",
        decibels(row.eps_sqnr_db),
        MISSING if row.accuracy is None else f"{row.accuracy:.1%}",
        *(MISSING if count is None else str(count) for count in (row.integer_layers, row.float_layers)),
    ]


def megabytes(size: int) -> str:
    """A size in MB (10⁶ bytes)."""
    return f"{size / 1e6:.2f} MB"


def decibels(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f} dB"
