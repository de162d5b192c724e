"""How much data calibration and rounding need: ε SQNR on held-out seeds against rows, trajectories, steps, positions.

``python -m benchmarks.enough_data SOURCE --weight-bits 4 --json out/enough.json --picture docs/images/enough.png``

Each curve varies one thing and leaves the others at their most. A row is one sample at one timestep. Seed 1 is
calibrated on, seeds 2 and 3 are judged.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated
from unittest import mock

import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.output import write_json
from qdiff_fx import CalibrationData, QDiffConfig, calibrate, convert_qdiff, round_weights
from qdiff_fx.evaluation import Trajectory, eps_sqnr
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.sources import SampleRequest, resolve
from qdiff_fx.weight_rounding import jobs
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.phases import prepare

CALIBRATED, JUDGED = 1, (2, 3)
POSITIONS = (0.5, 1, 2, 3, 6)


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        curve: what is varied.
        amount: of it.
        rows: that weights were rounded by.
        decibels: the mean over the steps and the seeds.
        last: of the last step.
    """

    curve: str
    amount: float
    rows: int
    decibels: float
    last: float


@dataclass(frozen=True)
class Shown:
    """What a point's network is shown: to its observers, and to the rounding of its weights."""

    amount: float
    observed: CalibrationData
    rounded: CalibrationData


def alike(amount: float, data: CalibrationData) -> Shown:
    return Shown(amount, data, data)


@dataclass(frozen=True)
class Recorded:
    """What is drawn, at most: so many trajectories of so many steps.

    Attributes:
        draw: the rows of the first so many trajectories.
    """

    samples: int
    steps: int
    draw: Callable[[int], CalibrationData]

    @property
    def most(self) -> CalibrationData:
        return self.draw(self.samples)


def rows_of(data: CalibrationData) -> int:
    return sum(len(next(iter(batch.values()))) for batch in data)


def by_rows(recorded: Recorded) -> Iterator[Shown]:
    """Evenly over trajectories and timesteps."""
    return (alike(amount, some) for amount, some in _ever_more(recorded))


def by_rounded_rows(recorded: Recorded) -> Iterator[Shown]:
    """The same of rounding, while observers see all."""
    return (Shown(amount, recorded.most, some) for amount, some in _ever_more(recorded))


def _ever_more(recorded: Recorded) -> Iterator[tuple[int, CalibrationData]]:
    """How many rows, and these."""
    data, amount = recorded.most, recorded.steps
    while amount < rows_of(data):
        yield amount, data.spread(amount)
        amount *= 2
    yield rows_of(data), data


def by_trajectories(recorded: Recorded) -> Iterator[Shown]:
    """All rows of so many trajectories."""
    count = 1
    while count < recorded.samples:
        yield alike(count, recorded.draw(count))
        count *= 2
    yield alike(recorded.samples, recorded.most)


def by_steps(recorded: Recorded) -> Iterator[Shown]:
    """Every n-th step of every trajectory, the last one always."""
    data, steps = recorded.most, recorded.steps
    for every in (16, 8, 4, 2, 1):
        chosen = [data[index] for index in range(len(data)) if (steps - 1 - index % steps) % every == 0]
        yield alike(len(range(0, steps, every)), CalibrationData(chosen, data.metadata))


def by_positions(recorded: Recorded) -> Iterator[Shown]:
    """Pixels or tokens for every column of a weight."""
    for each in POSITIONS:
        with mock.patch.object(jobs, "PER_COLUMN", each), mock.patch.object(jobs, "LEAST_POSITIONS", 1):
            yield alike(each, recorded.most)


CURVES: dict[str, Callable[[Recorded], Iterator[Shown]]] = {
    "rows": by_rows,
    "rows to round by": by_rounded_rows,
    "trajectories": by_trajectories,
    "steps of the trajectory": by_steps,
    "positions per column": by_positions,
}


def _point(curve: str, prepared: PreparedUNet, shown: Shown, judged: Sequence[Trajectory]) -> Point:
    network = copy.deepcopy(prepared)
    calibrate(network, shown.observed, progress=False)
    round_weights(network, shown.rounded, progress=False)
    quantized = convert_qdiff(network)
    found = [eps_sqnr(quantized, each) for each in judged]
    mean = statistics.mean(statistics.mean(each) for each in found)
    return Point(curve, shown.amount, rows_of(shown.rounded), mean, statistics.mean(each[-1] for each in found))


def drawn(curves: Mapping[str, Sequence[Point]], title: str) -> Figure:
    """One plot for each curve, side by side, with one axis of decibels."""
    figure = Figure(figsize=(3.2 * len(curves), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (curve, found) in zip(figure.subplots(1, len(curves), sharey=True, squeeze=False)[0], curves.items()):
        axes.plot([each.amount for each in found], [each.decibels for each in found], "o-", color="#1f3f7f")
        axes.set_xscale("log", base=2)
        axes.set_xticks([each.amount for each in found], [f"{each.amount:g}" for each in found])
        axes.minorticks_off()
        axes.set_xlabel(curve)
        axes.grid(axis="y", color="#dddddd")
    figure.axes[0].set_ylabel("ε SQNR, dB")
    figure.suptitle(title, fontsize=10)
    return figure


def main(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    weight_bits: Annotated[int, typer.Option("--weight-bits")] = 4,
    samples: Annotated[int, typer.Option("--samples")] = 8,
    steps: Annotated[int, typer.Option("--steps")] = 25,
    images: Annotated[int, typer.Option("--images", help="Judged, of each seed.")] = 4,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="CURVE", help="Not all curves.")] = None,
    json: Annotated[Path | None, typer.Option("--json")] = None,
    picture: Annotated[Path | None, typer.Option("--picture")] = None,
) -> None:
    """Print every point as it is found."""
    if unknown := set(only or ()) - set(CURVES):
        raise typer.BadParameter(f"unknown curves {', '.join(sorted(unknown))}; known: {', '.join(CURVES)}")
    origin = resolve(source)
    job = Job(QDiffConfig(weight_bits=weight_bits), SampleRequest(samples, steps, CALIBRATED))
    prepared = prepare(origin, job, False)

    @cache
    def draw(count: int) -> CalibrationData:
        return origin.calibration_data(SampleRequest(count, steps, CALIBRATED), every=1, progress=False)

    recorded = Recorded(samples, steps, draw)
    judged = [origin.trajectory(SampleRequest(images, steps, seed)) for seed in JUDGED]
    curves: dict[str, list[Point]] = {}
    for curve, points in CURVES.items():
        for shown in points(recorded) if curve in (only or CURVES) else ():
            point = _point(curve, prepared, shown, judged)
            curves.setdefault(curve, []).append(point)
            typer.echo(
                f"{point.curve:24} {point.amount:6g}  {point.rows:5} rows  {point.decibels:6.2f} dB  "
                f"last step {point.last:6.2f} dB"
            )
    if json is not None:
        write_json([vars(each) for found in curves.values() for each in found], json)
    if picture is not None:
        drawn(curves, f"{Path(source).parent.name or source}, W{weight_bits}A8").savefig(picture, dpi=110)


if __name__ == "__main__":
    typer.run(main)
