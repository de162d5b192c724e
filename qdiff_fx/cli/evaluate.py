"""``qdiff eval DIR``: how close a saved network stays to the float one."""

from __future__ import annotations

from statistics import fmean
from typing import Annotated, Any

import typer
from rich.table import Table

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import BackendName, Json, OwnSteps, Prompt, Prompts, SavedFolder, Seed, SourceOverride
from qdiff_fx.cli.output import Output, speaking_for_all
from qdiff_fx.cli.saved import request_of, source_of
from qdiff_fx.distributed import started_together
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.report.comparison import decibels
from qdiff_fx.report.layers import float_layers_table, layers_json
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.workflow.compare import REFERENCE, Fidelity, compare


def evaluate(
    folder: SavedFolder,
    source: SourceOverride = "",
    backend: BackendName = "native",
    images: Annotated[int, typer.Option("--images", min=1, help="How many images to denoise, in one batch.")] = 4,
    steps: OwnSteps = None,
    seed: Seed = 2,
    prompts: Prompts = None,
    prompt: Prompt = None,
    json: Json = None,
) -> None:
    """Compare a saved network with the float one: ε SQNR along the float trajectory, PSNR of the final images."""
    with started_together() as workers, speaking_for_all(workers), workers.together():
        output = Output(json, silent=not workers.leads)
        quantized = load_qdiff(folder, backend=backend)
        origin = source_of(quantized, folder, source, output, prompt, prompts)
        request = request_of(origin, quantized, images, steps, seed)
        fidelity = compare(quantized, origin, request, note=output.note, workers=workers)
    output.show(_table(fidelity, backend))
    output.show(float_layers_table(quantized.explain().rows, "on integers"))
    output.figures(_figures(fidelity, quantized, origin, request))


def _table(fidelity: Fidelity, backend: str) -> Table:
    table = Table(title="fidelity to the float network")
    table.add_column("")
    for name in fidelity.eps:
        table.add_column(name, justify="right")
    table.add_row("ε SQNR, mean over the steps", *(decibels(fmean(values)) for values in fidelity.eps.values()))
    table.add_row("ε SQNR, first step", *(decibels(values[0]) for values in fidelity.eps.values()))
    table.add_row("ε SQNR, last step", *(decibels(values[-1]) for values in fidelity.eps.values()))
    table.add_row("PSNR of the final images", decibels(fidelity.images))
    if backend != REFERENCE:
        table.add_row(f"agreement with the {REFERENCE}", decibels(fmean(fidelity.agreement)))
    return table


def _figures(fidelity: Fidelity, quantized: QuantizedUNet, origin: Source, request: SampleRequest) -> dict[str, Any]:
    return {
        "source": origin.identifier,
        "backend": quantized.backend,
        "images": request.count,
        "steps": request.steps,
        "seed": request.seed,
        "timesteps": fidelity.timesteps,
        "eps_sqnr_db": {name: {"mean": fmean(values), "per_step": values} for name, values in fidelity.eps.items()},
        "agreement_db": {"mean": fmean(fidelity.agreement), "per_step": fidelity.agreement},
        "psnr_db": fidelity.images,
        "layers": layers_json(quantized.explain().rows),
    }
