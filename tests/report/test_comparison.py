"""The comparison table: what it says, and what it leaves open."""

from __future__ import annotations

import io

from rich.console import Console

from qdiff_fx.report.comparison import NetworkFigures, comparison_rows, comparison_table

FP = NetworkFigures("FP32", 5_200_000, 0.1234, accuracy=0.985)
W4 = NetworkFigures("W4A8", 900_000, 0.05, 21.04, 0.97, 60, 3)


def test_rows_are_written_in_units() -> None:
    header, fp, w4 = comparison_rows([FP, W4])
    assert header[0] == "network"
    assert fp == ["FP32", "5.20 MB", "0.1234", "–", "98.5%", "–", "–"]
    assert w4 == ["W4A8", "0.90 MB", "0.0500", "21.0 dB", "97.0%", "60", "3"]


def test_no_layers_in_float_is_a_figure_not_a_gap() -> None:
    assert comparison_rows([NetworkFigures("a", 1, 1.0, integer_layers=5, float_layers=0)])[1][-2:] == ["5", "0"]


def test_the_terminal_table_holds_every_cell() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table([FP, W4], title="networks"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell in text for row in comparison_rows([FP, W4]) for cell in row)


def test_figures_are_plain_json() -> None:
    assert W4.to_json() == {
        "name": "W4A8",
        "file_bytes": 900_000,
        "seconds_per_image": 0.05,
        "eps_sqnr_db": 21.04,
        "accuracy": 0.97,
        "integer_layers": 60,
        "float_layers": 3,
    }
