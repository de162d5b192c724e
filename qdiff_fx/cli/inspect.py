"""``qdiff inspect DIR``: what a saved network consists of, and what each layer runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import BackendName, Json, SavedFolder
from qdiff_fx.cli.output import Output
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.report.comparison import megabytes
from qdiff_fx.storage.artifact import artifact_bytes


def inspect(
    folder: SavedFolder,
    backend: BackendName = "native",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With what each kernel does beside its layer, and why not more.")
    ] = False,
    json: Json = None,
) -> None:
    """Show a saved network: its size, its configuration, and every layer with the kernel it runs on."""
    output = Output(json)
    quantized = load_qdiff(folder, backend=backend)
    explanation = quantized.explain(verbose=verbose)
    integer, in_float = explanation.counts
    output.show(explanation.table())
    output.show(_summary(quantized, folder))
    output.figures(
        {
            "folder": str(folder),
            "bytes": artifact_bytes(folder),
            "source": quantized.source,
            "backend": backend,
            "config": quantized.qconfig.to_json(),
            "layers": {
                "integer": integer,
                "float": in_float,
                "rows": explanation.to_json(),
            },
        }
    )


def _summary(quantized: QuantizedUNet, folder: Path) -> Table:
    config = quantized.qconfig
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("folder", Text(str(folder)))
    table.add_row("size", megabytes(artifact_bytes(folder)))
    table.add_row("source", Text(quantized.source or "not recorded"))
    for name, value in config.to_json().items():
        if name != "rules":
            table.add_row(name, Text(str(value)))
    for rule in config.rules:
        table.add_row("rule", Text(str(rule)))
    return table
