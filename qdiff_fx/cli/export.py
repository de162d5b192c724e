"""``qdiff export DIR --out x.onnx``: a saved network for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import SavedFolder
from qdiff_fx.cli.output import Output
from qdiff_fx.export import export_qdiff
from qdiff_fx.report.comparison import megabytes


def export(
    folder: SavedFolder,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="x.onnx, or x.pt2 for torch.export.load.")],
) -> None:
    """Write a saved network as ONNX, or as a program of torch.export."""
    output = Output()
    output.note("tracing the network and writing it")
    written = export_qdiff(load_qdiff(folder, backend="reference"), out)
    output.show(f"wrote {written}: {megabytes(written.stat().st_size)}")
