"""``qdiff demo``: quantize the bundled model twice, and show what that costs and what it brings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer

from qdiff_fx.api import load_qdiff
from qdiff_fx.atomic import write_text
from qdiff_fx.calibration import calibrate
from qdiff_fx.cli.drawing import Run, accuracy, draw_in_turn
from qdiff_fx.cli.options import BackendName, Json, Seed, Steps
from qdiff_fx.cli.output import Output
from qdiff_fx.cli.quantize import DEFAULTS, check_target
from qdiff_fx.evaluation import eps_sqnr
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.observers import Observer
from qdiff_fx.report.comparison import NetworkFigures, comparison_rows, comparison_table
from qdiff_fx.report.page import Section, html_page
from qdiff_fx.report.sheet import save_sheet
from qdiff_fx.sources import DigitsSource, SampleRequest, Source
from qdiff_fx.storage.artifact import artifact_bytes
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.phases import build_kernels, decide, draw, prepare, save

FLOAT = "FP32"
WEIGHT_BITS = {"W8A8": 8, "W4A8": 4}
BATCH = 20
CALIBRATION_IMAGES = 20
PANELS, COLUMNS = 6, 10


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")] = Path("out/demo"),
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images each network draws.")] = 200,
    steps: Steps = 25,
    backend: BackendName = "native",
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Quantize the bundled digits model to W8A8 and W4A8 and compare both with the float network."""
    output = Output(json)
    folders = {name: out / name.lower() for name in WEIGHT_BITS}
    for folder in folders.values():
        check_target(folder)
    source = DigitsSource()
    source.progress = output.interactive
    ranges = _quantize_all(
        source, folders, SampleRequest(min(CALIBRATION_IMAGES, samples), steps, seed), out, output, backend
    )

    networks = {name: load_qdiff(folder, backend=backend) for name, folder in folders.items()}
    # A series of its own: what was calibrated on is not judged. One size of batch: another is compiled anew.
    judged = SampleRequest(samples, steps, seed + 1)
    batches = judged.batches(min(BATCH, samples))
    output.note("denoising with the float network")
    trajectory = source.trajectory(batches[0])
    output.note(f"measuring ε SQNR with the {backend} backend")
    fidelity = {
        name: fmean(eps_sqnr(network, trajectory, progress=output.interactive)) for name, network in networks.items()
    }
    output.note(f"drawing {samples} digits with every network in turn")
    runs = draw_in_turn(source, {FLOAT: source.unet, **networks}, batches, progress=output.interactive)

    figures = [_float_figures(source, runs[FLOAT], judged)]
    for name, network in networks.items():
        figures.append(_figures(name, network, folders[name], runs[name], fidelity[name], source.labels(judged)))
    title = f"{samples} digits, {steps} steps, {backend} backend, {torch.get_num_threads()} threads"
    output.show(comparison_table(figures, title))
    sheet = save_sheet({name: run.images[:COLUMNS] for name, run in runs.items()}, out / "samples.png")
    page = write_text(out / "report.html", _page(title, figures, sheet, ranges))
    for path in (sheet, ranges, page):
        output.show(f"wrote {path}")
    output.figures(
        {
            "backend": backend,
            "samples": samples,
            "steps": steps,
            "seed": seed,
            "threads": torch.get_num_threads(),
            "networks": [row.to_json() for row in figures],
        }
    )


def _quantize_all(
    source: Source, folders: dict[str, Path], request: SampleRequest, out: Path, output: Output, backend: str
) -> Path:
    """Save every variant, calibrated on the same trajectories; returns the plot of the ranges they were."""
    jobs = {
        name: Job(replace(DEFAULTS, weight_bits=bits), request, backend=backend) for name, bits in WEIGHT_BITS.items()
    }
    keeps_nothing = WorkFolder(None, source, jobs["W8A8"])
    prepared = []
    with output.progress() as progress:
        build_kernels(progress)
        data = draw(source, jobs["W8A8"], keeps_nothing, progress)
        for name, folder in folders.items():
            output.note(f"quantizing to {name}")
            prepared.append(prepare(source, jobs[name], progress))
            calibrate(prepared[-1], data, progress=progress)
            decide(prepared[-1], data, jobs[name], keeps_nothing, progress)
            save(prepared[-1], source, folder, progress)
    # Both saw the same activations.
    return _save_ranges(prepared[0], source, out / "ranges.png")


def _save_ranges(prepared: PreparedUNet, source: Source, path: Path) -> Path:
    from qdiff_fx.report.ranges import most_varying, save_ranges  # brings matplotlib

    records = [module.statistics() for module in prepared.modules() if isinstance(module, Observer)]
    inputs = [record for record in records if " input" in record.name]
    return save_ranges(most_varying(inputs, PANELS) or inputs[:PANELS], source.num_train_timesteps, path)


def _float_figures(source: DigitsSource, run: Run, judged: SampleRequest) -> NetworkFigures:
    size = sum(tensor.nbytes for tensor in source.unet.state_dict().values())
    return NetworkFigures(FLOAT, size, run.seconds_per_image, accuracy=accuracy(run.images, source.labels(judged)))


def _figures(
    name: str, network: QuantizedUNet, folder: Path, run: Run, sqnr: float, labels: torch.Tensor
) -> NetworkFigures:
    integer, in_float = network.explain().counts
    return NetworkFigures(
        name,
        artifact_bytes(folder),
        run.seconds_per_image,
        sqnr,
        accuracy(run.images, labels),
        integer,
        in_float,
    )


def _page(title: str, figures: list[NetworkFigures], sheet: Path, ranges: Path) -> str:
    return html_page(
        "qdiff demo",
        [
            Section("Figures", title, comparison_rows(figures)),
            Section("Samples", "Every column starts from the same noise.", picture=sheet),
            Section(
                "Activation ranges over the timesteps",
                "The layers whose input range changes most while the float network denoises.",
                picture=ranges,
            ),
        ],
    )
