"""Where steps count: images by fewer steps against those by 25 uniform ones, for placed steps and for what others do.

``python -m benchmarks.steps SOURCE --schedules DIR --json out/steps.json --picture docs/images/steps.png``

Steps are chosen on seed 1, seeds 2 and 3 are judged. Every call of the network costs the same, so time goes by steps.
``--network DIR`` adds saved networks, each along the steps it keeps, or 25 uniform ones.
"""

from __future__ import annotations

import json as json_text
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from benchmarks.output import Column, number, print_table, write_json
from qdiff_fx import Schedule, load_qdiff
from qdiff_fx.bundled.digits import load_digit_classifier
from qdiff_fx.evaluation import frechet_distance, psnr_db
from qdiff_fx.schedules.placing import placed
from qdiff_fx.schedules.trajectories import Sampling
from qdiff_fx.schedules.walk import uniform
from qdiff_fx.sources import DIGITS, SampleRequest, Source, resolve
from qdiff_fx.storage.checked_schedule import schedule_from_json

CHOSEN, JUDGED, ALL, CHOSEN_BY = 1, (2, 3), 25, 4
COUNTS = (8, 10, 12, 15, 20)
CLIPPED = -5.1
"""The smallest log signal-to-noise ratio that DPM-Solver++ may begin at with cosine schedules, as diffusers advises."""


class Judged:
    """Images of all judged seeds."""

    psnr: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.psnr) / len(self.psnr)


@dataclass(frozen=True)
class Row(Judged):
    """Images of all judged seeds.

    Attributes:
        model, backend: what placed the steps, and which network took them.
        seconds: of this process, for an image.
        psnr: to the float network's images by all steps, in dB, for each seed.
        accuracy: share that shows the class asked for; of digits only.
        frechet: distance to those images, of the classifier's features; likewise.
    """

    model: str
    backend: str
    steps: int
    seconds: float
    psnr: tuple[float, ...]
    accuracy: float | None
    frechet: float | None


def trailing(own: Any, steps: int) -> Any:
    return DDIMScheduler.from_config(own.config, timestep_spacing="trailing")


def karras(own: Any, steps: int) -> Any:
    """Their noise levels, by Euler's method."""
    return EulerDiscreteScheduler.from_config(own.config, use_karras_sigmas=True)


def align_your_steps(own: Any, steps: int) -> Any:
    """The list for Stable Diffusion, log-linear between its ten steps, by Euler's method."""
    return _Listed.from_config(own.config)


def dpm_solver(own: Any, steps: int) -> Any:
    return DPMSolverMultistepScheduler.from_config(own.config, lambda_min_clipped=CLIPPED)


class _Listed(EulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **given: Any) -> None:
        known = np.log(cast(list[float], AysSchedules["StableDiffusionSigmas"])[:-1])
        at = np.linspace(0, len(known) - 1, num_inference_steps or len(known))
        listed = [*np.exp(np.interp(at, range(len(known)), known)), 0.0]
        super().set_timesteps(sigmas=listed, device=device)  # type: ignore[misc]  # diffusers imports its classes late


OTHERS: Mapping[str, Callable[[Any, int], Any]] = {
    "trailing": trailing,
    "Karras": karras,
    "Align Your Steps": align_your_steps,
    "DPM-Solver++": dpm_solver,
}


def chosen(origin: Source, counts: Sequence[int], folder: Path | None) -> dict[int, Schedule]:
    """A schedule for each count; those in the folder are taken as they are, others are kept there."""
    found = {count: each for count in counts if (each := _kept(folder, count)) is not None}
    if len(found) < len(counts):
        scheduler = origin.make_scheduler(ALL) or origin.pipe.scheduler
        request = SampleRequest(CHOSEN_BY, ALL, CHOSEN)
        every_step = uniform(scheduler, ALL)
        subjects = origin.subjects(request)
        sampling = Sampling(origin.pipe, scheduler, every_step, CHOSEN_BY, subjects, CHOSEN, None)
        first, reference = sampling.reference()
        for way in placed(sampling, first, reference):
            found.setdefault(len(way.steps), every_step.part(way.steps))
            if len(way.steps) >= max(counts):
                break
        for count in counts if folder is not None else ():
            write_json([found[count].to_json()], folder / f"{count}.json")
    return {count: found[count] for count in counts}


def _kept(folder: Path | None, count: int) -> Schedule | None:
    file = None if folder is None else folder / f"{count}.json"
    if file is None or not file.is_file():
        return None
    data = json_text.loads(file.read_text(encoding="utf-8"))
    return schedule_from_json(data[0] if isinstance(data, list) else data, str(file))


class Judge:
    """Compares with the float network's images by all steps.

    Args:
        origin: the source.
        images: of each seed.
    """

    def __init__(self, origin: Source, images: int):
        self.origin, self.images = origin, images
        self.references = [origin.sample(origin.unet, SampleRequest(images, ALL, seed)) for seed in JUDGED]

    def row(
        self, name: str, network: str, unet: nn.Module, steps: int, schedule: Schedule | None = None, other: Any = None
    ) -> Row:
        """By uniform steps, by those of the schedule, or by those of another scheduler."""
        requests = [SampleRequest(self.images, steps, seed, schedule=schedule) for seed in JUDGED]
        begun = time.process_time()
        drawn = [self._drawn(unet, request, other) for request in requests]
        seconds = (time.process_time() - begun) / self.images / len(JUDGED)
        psnr = tuple(psnr_db(images, reference) for images, reference in zip(drawn, self.references, strict=True))
        return Row(name, network, steps, seconds, psnr, *self._as_digits(drawn, requests))

    def _drawn(self, unet: nn.Module, request: SampleRequest, other: Any) -> torch.Tensor:
        own = self.origin.pipe.scheduler
        if other is not None:
            other.set_timesteps(request.steps)
            self.origin.pipe.scheduler = other
        try:
            return self.origin.sample(unet, request)
        finally:
            self.origin.pipe.scheduler = own

    @torch.no_grad()
    def _as_digits(
        self, drawn: Sequence[torch.Tensor], requests: Sequence[SampleRequest]
    ) -> tuple[float | None, float | None]:
        if self.origin.identifier != DIGITS:
            return None, None
        classifier = load_digit_classifier()
        labels = [self.origin.labels(request) for request in requests]
        asked = torch.cat([each for each in labels if each is not None])
        images = torch.cat(list(drawn))
        right = (classifier(images).argmax(1) == asked).double().mean()
        features = [classifier.features(each) for each in (images, torch.cat(self.references))]
        return float(right), frechet_distance(*features)


def rows(judge: Judge, schedules: Mapping[int, Schedule], networks: Sequence[Path]) -> Iterator[Row]:
    """Every curve by the float network, then the saved networks along their own steps."""
    origin = judge.origin
    for steps, schedule in schedules.items():
        yield judge.row("uniform", "float", origin.unet, steps)
        yield judge.row("placed", "float", origin.unet, steps, schedule)
        own = origin.make_scheduler(steps) or origin.pipe.scheduler
        for name, make in OTHERS.items():
            yield judge.row(name, "float", origin.unet, steps, other=make(own, steps))
    for folder in networks:
        quantized = load_qdiff(folder)
        bits = f"W{quantized.qconfig.weight_bits}A{quantized.qconfig.act_bits}"
        kept = quantized.schedule
        steps = ALL if kept is None else len(kept)
        yield judge.row("uniform" if kept is None else "placed", bits, quantized, steps, kept)


def psnr_axes(title: str, over: str) -> tuple[Figure, Any]:
    """A figure of PSNR over something, and its axes, for lines that name themselves."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlabel(over)
    axes.set_ylabel(f"PSNR to {ALL} uniform steps, dB")
    axes.grid(axis="y", color="#dddddd")
    axes.set_title(title, fontsize=10)
    return figure, axes


def drawn(found: Sequence[Row], title: str) -> Figure:
    """PSNR over steps, a line for each that placed them; saved networks are points."""
    figure, axes = psnr_axes(title, "calls of the network")
    for name in dict.fromkeys(row.model for row in found if row.backend == "float"):
        line = [row for row in found if (row.model, row.backend) == (name, "float")]
        width = 2.5 if name == "placed" else 1.2
        axes.plot([row.steps for row in line], [row.mean for row in line], "o-", label=name, linewidth=width)
    for row in found:
        if row.backend != "float":
            axes.plot([row.steps], [row.mean], "s", color="black")
            at = (row.steps, row.mean)
            axes.annotate(row.backend, at, xytext=(0, 6), textcoords="offset points", ha="center")
    axes.legend(fontsize=8)
    return figure


QUALITY: dict[str, Column] = {
    "PSNR, dB": ("mean", number(1)),
    "of each seed": ("psnr", lambda values: ", ".join(f"{each:.1f}" for each in values)),
    "right digit": ("accuracy", number(3)),
    "Fréchet": ("frechet", number(3)),
}
COLUMNS: dict[str, Column] = {
    "steps by": ("model", str),
    "network": ("backend", str),
    "steps": ("steps", str),
    "s per image": ("seconds", number(2)),
    **QUALITY,
}


def main(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    count: Annotated[list[int] | None, typer.Option("--count", help=f"Steps [default: {COUNTS}].")] = None,
    images: Annotated[int, typer.Option("--images", help="Of each seed.")] = 4,
    schedules: Annotated[Path | None, typer.Option("--schedules", metavar="DIR", help="Keep them here.")] = None,
    network: Annotated[list[Path] | None, typer.Option("--network", metavar="DIR")] = None,
    json: Annotated[Path | None, typer.Option("--json")] = None,
    picture: Annotated[Path | None, typer.Option("--picture")] = None,
) -> None:
    """Print every row as it is found, and all of them as a table."""
    origin = resolve(source)
    found_schedules = chosen(origin, count or COUNTS, schedules)
    found = []
    for row in rows(Judge(origin, images), found_schedules, network or ()):
        typer.echo(f"{row.model:18} {row.backend:6} {row.steps:3} steps  {row.mean:6.2f} dB  {row.seconds:6.2f} s")
        found.append(row)
    print_table("Images against those of 25 uniform steps", COLUMNS, found)
    if json is not None:
        write_json([{**vars(row), "schedule": _steps_of(row, found_schedules)} for row in found], json)
    if picture is not None:
        drawn(found, f"{Path(source).parent.name or source}, {images * len(JUDGED)} images").savefig(picture, dpi=110)


def _steps_of(row: Row, schedules: Mapping[int, Schedule]) -> list[int] | None:
    placed_here = row.model == "placed" and row.steps in schedules
    return list(schedules[row.steps].chosen) if placed_here else None


if __name__ == "__main__":
    typer.run(main)
