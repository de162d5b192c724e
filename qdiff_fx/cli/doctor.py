"""``qdiff doctor``: what quantized networks run on here, and where it comes from."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
import typer
from rich.table import Table
from rich.text import Text

import qdiff_fx
from qdiff_fx.cli.options import Json
from qdiff_fx.cli.output import Output
from qdiff_fx.kernels import Status, status
from qdiff_fx.kernels.isa import supported_isas

OF_PIPELINES = ("transformers", "accelerate")
"""What diffusers wants for most pipelines, and to load with a quantization_config."""


def doctor(json: Json = None) -> None:
    """Show which kernels run here, where they come from, and what else this processor could run.

    Exits with 1 where there are none and nobody has switched them off.
    """
    output, found = Output(json), status()
    rows = {
        "qdiff_fx": qdiff_fx.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "instruction sets": ", ".join(supported_isas()),
        "kernels": found.kernel or f"plain torch: {found.reason}",
        "from": found.source,
        "library": str(found.library or "-"),
        "operators": str(found.operators or "-"),
    }
    rows |= {name: _installed(name) for name in ("diffusers", *OF_PIPELINES)}
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    output.show(table)
    output.figures(rows)
    if _is_ill(found):
        raise typer.Exit(1)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        wanted = "pip install 'qdiff_fx[pipelines]'" if package in OF_PIPELINES else f"pip install {package}"
        return f"not installed: {wanted}"


def _is_ill(found: Status) -> bool:
    return not found.available and not found.disabled
