"""``qdiff eval DIR``: how close a saved network stays to the float one."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import BackendName, Json, Prompts, SavedFolder, Seed, SourceOverride, Steps
from qdiff_fx.cli.output import Output
from qdiff_fx.cli.saved import source_of
from qdiff_fx.evaluation import Trajectory, predict, psnr_db, sqnr_db
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.report.comparison import decibels
from qdiff_fx.report.layers import float_layers_table, layers_json
from qdiff_fx.sources import SampleRequest, Source

REFERENCE = "reference"


@dataclass(frozen=True)
class Fidelity:
    """Signal-to-noise ratios in dB.

    Attributes:
        eps: backend → SQNR of its prediction at every step of the float trajectory.
        agreement: SQNR of the backend against the reference backend at every step.
        images: PSNR of the backend's own final images against the float ones.
    """

    eps: dict[str, list[float]]
    agreement: list[float]
    images: float


def evaluate(
    folder: SavedFolder,
    source: SourceOverride = "",
    backend: BackendName = "native",
    images: Annotated[int, typer.Option("--images", min=1, help="How many images to denoise, in one batch.")] = 4,
    steps: Steps = 25,
    seed: Seed = 2,
    prompts: Prompts = None,
    json: Json = None,
) -> None:
    """Compare a saved network with the float one: ε SQNR along the float trajectory, PSNR of the final images."""
    output = Output(json)
    quantized = load_qdiff(folder, backend=backend)
    origin = source_of(quantized, folder, source, output, prompts)
    request = SampleRequest(images, steps, seed)
    output.note(f"denoising {images} images in {steps} steps with the float network")
    trajectory = origin.trajectory(request)
    fidelity = measure(quantized, origin, request, trajectory, output)
    output.show(_table(fidelity, backend))
    output.show(float_layers_table(quantized.explain().rows, "on integers"))
    output.figures(_figures(fidelity, quantized, origin, request, trajectory))


def measure(
    quantized: QuantizedUNet, origin: Source, request: SampleRequest, trajectory: Trajectory, output: Output
) -> Fidelity:
    """Run the quantized network on the float network's inputs, then let it denoise by itself."""
    names = dict.fromkeys((quantized.backend, REFERENCE))
    predictions = {}
    for name in names:
        output.note(f"predicting with the {name} backend")
        network = quantized if name == quantized.backend else quantized.with_backend(name)
        predictions[name] = _predictions(network, trajectory)
    eps = {
        name: [sqnr_db(step.eps, actual) for step, actual in zip(trajectory.steps, predictions[name])] for name in names
    }
    agreement = [sqnr_db(*pair) for pair in zip(predictions[REFERENCE], predictions[quantized.backend])]
    output.note(f"denoising with the {quantized.backend} backend")
    images = origin.sample(quantized, request)
    return Fidelity(eps, agreement, psnr_db(images, trajectory.final))


@torch.no_grad()
def _predictions(network: QuantizedUNet, trajectory: Trajectory) -> list[torch.Tensor]:
    return [predict(network, step.sample, step.timestep, **trajectory.conditioning) for step in trajectory.steps]


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


def _figures(
    fidelity: Fidelity, quantized: QuantizedUNet, origin: Source, request: SampleRequest, trajectory: Trajectory
) -> dict[str, Any]:
    return {
        "source": origin.identifier,
        "backend": quantized.backend,
        "images": request.count,
        "steps": request.steps,
        "seed": request.seed,
        "timesteps": [float(torch.as_tensor(step.timestep).reshape(-1)[0]) for step in trajectory.steps],
        "eps_sqnr_db": {name: {"mean": fmean(values), "per_step": values} for name, values in fidelity.eps.items()},
        "agreement_db": {"mean": fmean(fidelity.agreement), "per_step": fidelity.agreement},
        "psnr_db": fidelity.images,
        "layers": layers_json(quantized.explain().rows),
    }
