"""``qdiff sample DIR``: a picture of what a saved network draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import BackendName, OwnSteps, Prompt, Prompts, SavedFolder, Seed, SourceOverride
from qdiff_fx.cli.output import Output, check_writable_file
from qdiff_fx.cli.saved import request_of, source_of
from qdiff_fx.report.sheet import save_sheet


def sample(
    folder: SavedFolder,
    out: Annotated[Path, typer.Option("--out", help="The PNG file to write.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many images, in one batch.")] = 10,
    compare: Annotated[bool, typer.Option("--compare", help="Add a row drawn by the float network.")] = False,
    source: SourceOverride = "",
    backend: BackendName = "native",
    steps: OwnSteps = None,
    seed: Seed = 0,
    prompts: Prompts = None,
    prompt: Prompt = None,
) -> None:
    """Draw images with a saved network into one PNG sheet."""
    output = Output()
    check_writable_file(out)
    quantized = load_qdiff(folder, backend=backend)
    origin = source_of(quantized, folder, source, output, prompt, prompts)
    request = request_of(quantized, count, steps, seed)
    if request.schedule is not None:
        output.note(f"taking {request.steps} placed steps in place of {request.schedule.out_of}")
    rows = {}
    if compare:
        output.note("denoising with the float network")
        rows["FP"] = origin.sample(origin.unet, request)
    output.note(f"denoising with the {backend} backend")
    config = quantized.qconfig
    rows[f"W{config.weight_bits}A{config.act_bits}"] = origin.sample(quantized, request)
    output.show(f"wrote {save_sheet(rows, out)}")
