"""Whether features kept between steps win anything: against fewer steps, placed steps, and on top of placed steps.

``python -m benchmarks.caching SOURCE --schedules DIR --picture docs/images/caching.png``

Float networks. All choices are made on seed 1, seeds 2 and 3 are judged, as in `benchmarks.steps`. Cost is in whole
calls of the network, by multiply-adds: a call that reuses features counts as what it still computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure

from benchmarks.cached_network import CachedNetwork, Cut, find_cuts, placed_refreshes
from benchmarks.output import Column, number, print_table, write_json
from benchmarks.steps import ALL, CHOSEN, CHOSEN_BY, QUALITY, Judge, Judged, chosen, psnr_axes
from qdiff_fx import Schedule
from qdiff_fx.capture import capture
from qdiff_fx.sources import SampleRequest, Source, resolve

COSTS = (10, 12, 15)
FURTHER = 1.3
"""Placed steps that caching is tried on top of, in units of the cost."""


@dataclass(frozen=True)
class CachedRow(Judged):
    """A row of `benchmarks.steps` and what it costs, in whole calls of the network."""

    way: str
    steps: int
    full: int
    cost: float
    psnr: tuple[float, ...]
    accuracy: float | None
    frechet: float | None


def refreshes(cost: float, steps: int, left: float) -> int:
    """How many of the steps may compute everything, where the others compute what is left."""
    return max(1, min(steps, round((cost - steps * left) / (1 - left))))


def further(cost: int) -> int:
    """How many placed steps caching is tried on top of."""
    return min(max(cost + 1, round(FURTHER * cost)), ALL - 1)


def evenly(count: int, steps: int) -> list[int]:
    return sorted({step * steps // count for step in range(count)})


@dataclass(frozen=True)
class Trial:
    """One source, one cut of its network, and what others are compared with."""

    judge: Judge
    network: CachedNetwork
    cut: Cut
    schedules: Mapping[int, Schedule]

    def rows(self, costs: Sequence[int]) -> Iterator[CachedRow]:
        features = {steps: self._features(steps) for steps in {ALL, *map(further, costs)}}
        for cost in costs:
            yield self._row("fewer uniform steps", cost, cost, None)
            yield self._row("placed steps", cost, cost, self.schedules[cost])
            full = refreshes(cost, ALL, self.cut.left)
            yield self._row("uniform steps, features kept evenly", ALL, full, None, evenly(full, ALL))
            placed = placed_refreshes(features[ALL], self._moves(None), full)
            yield self._row("uniform steps, features kept where they change least", ALL, full, None, placed)
            steps = further(cost)
            full = refreshes(cost, steps, self.cut.left)
            placed = placed_refreshes(features[steps], self._moves(self.schedules[steps]), full)
            yield self._row("placed steps, features kept likewise", steps, full, self.schedules[steps], placed)

    @torch.no_grad()
    def _features(self, steps: int) -> list[torch.Tensor]:
        """At every step of seed 1."""
        self.network.restart(range(steps), watching=True)
        schedule = None if steps == ALL else self.schedules[steps]
        self.judge.origin.sample(self.network, SampleRequest(CHOSEN_BY, steps, CHOSEN, schedule=schedule))
        return self.network.seen

    def _moves(self, schedule: Schedule | None) -> list[float]:
        """By how much each step lowers `sqrt(1/ᾱ - 1)`."""
        origin = self.judge.origin
        scheduler = origin.make_scheduler(ALL) or origin.pipe.scheduler
        scheduler.set_timesteps(ALL)
        at = scheduler.timesteps if schedule is None else torch.tensor(schedule.timesteps)
        sigmas = (1 / scheduler.alphas_cumprod[at.long()] - 1).sqrt().tolist()
        return [before - after for before, after in pairwise([*sigmas, 0.0])]

    def _row(
        self, way: str, steps: int, full: int, schedule: Schedule | None, where: Sequence[int] | None = None
    ) -> CachedRow:
        taken: Sequence[int] = range(steps) if where is None else where
        self.network.restart(taken, every=steps)
        row = self.judge.row(way, "float", self.network, steps, schedule)
        cost = full + (steps - full) * self.cut.left
        return CachedRow(way, steps, full, cost, row.psnr, row.accuracy, row.frechet)


def trial(origin: Source, images: int, left: float, costs: Sequence[int], folder: Path | None) -> Trial:
    """The cut that leaves at most that share."""
    example = origin.example_inputs()
    captured = capture(origin.unet, example)
    cut = [each for each in find_cuts(captured, example) if each.left <= left][-1]
    steps = {*costs, *map(further, costs)}
    return Trial(Judge(origin, images), CachedNetwork(captured, cut), cut, chosen(origin, sorted(steps), folder))


COLUMNS: dict[str, Column] = {
    "way": ("way", str),
    "steps": ("steps", str),
    "of them whole": ("full", str),
    "cost": ("cost", number(1)),
    **QUALITY,
}


def drawn(found: Sequence[CachedRow], title: str) -> Figure:
    """PSNR over cost."""
    figure, axes = psnr_axes(title, "cost, in whole calls of the network")
    for way in dict.fromkeys(row.way for row in found):
        line = [row for row in found if row.way == way]
        axes.plot([row.cost for row in line], [row.mean for row in line], "o-", label=way)
    axes.legend(fontsize=8)
    return figure


def main(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    cost: Annotated[list[int] | None, typer.Option("--cost", help=f"In whole calls [default: {COSTS}].")] = None,
    left: Annotated[float, typer.Option(help="The share of a call that a cut may leave to compute, at most.")] = 0.25,
    images: Annotated[int, typer.Option("--images", help="Of each seed.")] = 4,
    schedules: Annotated[Path | None, typer.Option("--schedules", metavar="DIR", help="Keep them here.")] = None,
    json: Annotated[Path | None, typer.Option("--json")] = None,
    picture: Annotated[Path | None, typer.Option("--picture")] = None,
) -> None:
    """Print every row as it is found, and all of them as a table."""
    origin = resolve(source)
    tried = trial(origin, images, left, cost or COSTS, schedules)
    typer.echo(f"kept between steps: {tried.cut.name}, which leaves {tried.cut.left:.0%} of the multiply-adds")
    found = []
    for row in tried.rows(cost or COSTS):
        typer.echo(f"{row.way:55} cost {row.cost:5.1f}  {row.mean:6.2f} dB")
        found.append(row)
    print_table("Images against those of 25 uniform steps", COLUMNS, found)
    if json is not None:
        write_json([vars(row) for row in found], json)
    if picture is not None:
        drawn(found, f"{Path(source).parent.name or source}, {images * 2} images").savefig(picture, dpi=110)


if __name__ == "__main__":
    typer.run(main)
