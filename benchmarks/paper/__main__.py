"""``python -m benchmarks.paper ablation --network digits --out out/paper``: one experiment, or ``all`` of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.output import console
from benchmarks.paper.ablation import ablation
from benchmarks.paper.accumulation import accumulation
from benchmarks.paper.activations import layer_ranges, over_timesteps
from benchmarks.paper.bimodal import bimodal
from benchmarks.paper.result import Result
from benchmarks.paper.selection import selection
from benchmarks.paper.study import Study
from benchmarks.paper.successors import successors

EXPERIMENTS: dict[str, Callable[[Study], Result]] = {
    "accumulation": accumulation,  # figure 3
    "selection": selection,  # figure 4
    "timesteps": over_timesteps,  # figure 5
    "layers": layer_ranges,  # figure 6
    "bimodal": bimodal,  # figure 7
    "ablation": ablation,
    "successors": successors,
}


def main(
    experiment: Annotated[str, typer.Argument(help=f"{', '.join(EXPERIMENTS)}, or all.")],
    network: Annotated[str, typer.Option(help="digits, a pipeline, or a Python file.")] = "digits",
    out: Annotated[Path, typer.Option(help="The folder for PNG, JSON and markdown.")] = Path("out/paper"),
    steps: Annotated[int, typer.Option(min=5, help="Denoising steps.")] = 25,
    images: Annotated[int, typer.Option(min=1, help="Images calibrated on, and images tested.")] = 8,
    seeds: Annotated[str, typer.Option(help="CAL,TEST,TEST…: seeds of calibration and test noise.")] = "1,2,3",
    backend: Annotated[str, typer.Option(help="What the quantized networks run on.")] = "native",
) -> None:
    """Repeat an experiment of the paper: a plot, a table and its numbers."""
    if experiment != "all" and experiment not in EXPERIMENTS:
        raise typer.BadParameter(f"unknown experiment {experiment!r}; known: {', '.join(EXPERIMENTS)}, all")
    study = Study(network, steps, images, tuple(int(seed) for seed in seeds.split(",")), backend)
    if len(study.seeds) < 2:
        raise typer.BadParameter("give a calibration seed and at least one test seed")
    for name in EXPERIMENTS if experiment == "all" else (experiment,):
        result = EXPERIMENTS[name](study)
        result.save(out, name, asdict(study))
        console().print(f"{result.title}\n{result.markdown()}\n", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
