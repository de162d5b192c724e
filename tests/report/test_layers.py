"""Layers in float are listed with their reasons; the others are counted."""

from __future__ import annotations

import io

from rich.console import Console

from qdiff_fx.backends import LayerReport
from qdiff_fx.quant.qparams import LayerInfo
from qdiff_fx.report.layers import float_layers_table, layers_json

INTEGER = LayerReport(LayerInfo("conv_in", "conv", 8, 8), "kernel")
OTHER = LayerReport(LayerInfo("conv_out", "conv", 8, 8), "kernel")
FLOAT = LayerReport(LayerInfo("up[bold].conv[0:4]", "conv", float_reason="[red]no[/red]"), "float", "[red]no[/red]")


def text_of(rows: list[LayerReport]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(float_layers_table(rows, "quantized"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_counts_and_reasons() -> None:
    text = text_of([INTEGER, OTHER, FLOAT])
    assert "2 layers quantized, 1 in float" in text
    # Brackets are part of a path, not markup.
    assert "up[bold].conv[0:4]" in text
    assert "[red]no[/red]" in text
    assert "conv_in" not in text


def test_no_table_where_nothing_is_in_float() -> None:
    assert text_of([INTEGER]).strip() == "1 layers quantized, 0 in float"


def test_figures() -> None:
    assert layers_json([INTEGER, FLOAT]) == {
        "integer": 1,
        "float": 1,
        "in_float": [{"path": "up[bold].conv[0:4]", "reason": "[red]no[/red]"}],
    }
