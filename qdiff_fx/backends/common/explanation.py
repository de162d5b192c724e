"""What each layer of a quantized network runs on, and why some do not run on integers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdiff_fx.backends.common.base import LayerReport, count_layers

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Explanation:
    """Every weight layer and attention in execution order; ``str()`` of it is a table.

    Attributes:
        backend: name of the backend.
        rows: one for each layer, or for each part of a layer that was split or reads a 16-bit input.
        verbose: the table shows details of how each layer runs.
        fixed: sizes of the inputs that stay as in the example, and why.
    """

    backend: str
    rows: tuple[LayerReport, ...]
    verbose: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, int]:
        """How many layers run on integers, and how many do not; one that has several rows counts once."""
        return count_layers(self.rows)

    @property
    def integer(self) -> tuple[LayerReport, ...]:
        return tuple(row for row in self.rows if row.integer)

    @property
    def in_float(self) -> tuple[LayerReport, ...]:
        return tuple(row for row in self.rows if not row.integer)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                **{
                    name: getattr(row.info, name)
                    for name in ("path", "kind", "weight_bits", "act_bits", "softmax_bits")
                },
                **{
                    name: getattr(row, name)
                    for name in ("kernel", "reason", "note", "notes", "weight_scale", "act_scale")
                },
            }
            for row in self.rows
        ]

    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        integer, in_float = self.counts
        table = Table(title=Text(f"{integer} layers on integers, {in_float} in float ({self.backend})"))
        for column in ("layer", "kind", "W", "A", "weight scale", "activation scale", "kernel", "remark"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            info = row.info
            remarks = (row.reason, row.note, *(row.notes if self.verbose else ()))
            cells = (
                info.path,
                info.kind,
                *(str(bits or "–") for bits in (info.weight_bits, info.act_bits)),
                *(_range(scale) for scale in (row.weight_scale, row.act_scale)),
                row.kernel,
                "; ".join(text for text in remarks if text),
            )
            table.add_row(*map(Text, cells))  # as text: brackets of a path are no markup
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=160).print(self.table())
        text.writelines(f"fixed: {where}, because {why}\n" for where, why in self.fixed.items())
        return text.getvalue()


def _range(scale: tuple[float, float] | None) -> str:
    if scale is None:
        return "–"
    low, high = scale
    return f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g}"
