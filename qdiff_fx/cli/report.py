"""``qdiff report DIR --out report.html``: a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdiff_fx.api import load_qdiff
from qdiff_fx.atomic import write_text
from qdiff_fx.cli.options import BackendName, OwnSteps, Prompt, Prompts, SavedFolder, Seed, SourceOverride
from qdiff_fx.cli.output import Output, check_writable_file
from qdiff_fx.cli.saved import request_of, source_of
from qdiff_fx.report.network_page import network_page
from qdiff_fx.storage.artifact import artifact_bytes
from qdiff_fx.workflow.findings import findings


def report(
    folder: SavedFolder,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file to write.")],
    source: SourceOverride = "",
    backend: BackendName = "native",
    images: Annotated[int, typer.Option("--images", min=1, help="How many images to denoise, in one batch.")] = 4,
    steps: OwnSteps = None,
    seed: Seed = 2,
    prompts: Prompts = None,
    prompt: Prompt = None,
) -> None:
    """Write one page about a saved network: pictures beside the float network's, every step, every layer."""
    output = Output()
    check_writable_file(out)
    quantized = load_qdiff(folder, backend=backend)
    origin = source_of(quantized, folder, source, output, prompt, prompts)
    found = findings(
        quantized,
        origin,
        request_of(origin, quantized, images, steps, seed),
        title=folder.resolve().name,
        saved_bytes=artifact_bytes(folder),
        note=output.note,
    )
    output.show(f"wrote {write_text(out, network_page(found))}")
