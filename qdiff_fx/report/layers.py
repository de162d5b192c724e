"""Which layers stayed in float, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qdiff_fx.backends import LayerReport
from qdiff_fx.backends.common.base import count_layers


def float_layers_table(rows: Sequence[LayerReport], what: str) -> RenderableType:
    """How many layers are ``what`` ("on integers", "quantized"), and a table of the others if there are any."""
    in_float = [row for row in rows if not row.integer]
    counts = count_layers(rows)
    title = f"{counts[0]} layers {what}, {counts[1]} in float"
    if not in_float:
        return title
    table = Table(title=title)
    table.add_column("layer in float")
    table.add_column("reason", overflow="fold")
    for row in in_float:
        # As text: neither a path nor a reason is markup.
        table.add_row(Text(row.info.path), Text(row.reason))
    return table


def layers_json(rows: Sequence[LayerReport]) -> dict[str, Any]:
    """The same as figures."""
    in_float = [{"path": row.info.path, "reason": row.reason} for row in rows if not row.integer]
    integer, others = count_layers(rows)
    return {"integer": integer, "float": others, "in_float": in_float}
