"""Whole images: seconds, processor seconds and peak memory, from process start and warm, by part; interleaved.

``python -m benchmarks.whole_image --models digits,sd-tiny --backends native-w8a8,torch-fp32,openvino-int8 --threads 1``

Every backend is a process of its own that draws one image when it is its turn. Of a large pipeline ``--timed 2`` steps
are taken and the UNet's time counts as if it were all of them; rows and table say so. Parts are in seconds of the
processor, in all threads: on a shared machine the clock also counts what others do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.artifacts import artifact_cache
from benchmarks.output import Column, number, print_table, write_json
from benchmarks.timing import Timings, Worker, WorkerError, interleave
from benchmarks.whole.contender import get_contender
from benchmarks.whole.subject import DECODER, TEXT_ENCODER, UNET, Subject, get_subject

BACKENDS = "native-w8a8,native-w4a8,openvino-int8,openvino-hybrid,torch-fp32,torch-bf16"
PROGRAM = "benchmarks.whole.worker"


@dataclass(frozen=True)
class ImageRow:
    """One backend on one pipeline. Figures are None when it failed, and `error` says why.

    Attributes:
        steps, timed: the image's, and how many of them were taken; the UNet's time is `steps / timed` of what it took.
        seconds, processor: of a warm image, medians over the rounds; of the clock, and of the processor.
        speedup, of_processor: medians over the rounds of the anchor's over this backend's in the same round.
        parts: processor seconds of a warm image by part, medians.
        from_start, processor_from_start: from the start of the process to the end of its first image.
        first_peak_bytes, peak_rss_bytes: largest resident set of the process, up to its first image and in all.
    """

    model: str
    backend: str
    steps: int
    timed: int
    guidance: float
    threads: int
    seconds: float | None = None
    processor: float | None = None
    speedup: float | None = None
    of_processor: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    from_start: float | None = None
    processor_from_start: float | None = None
    first_peak_bytes: int | None = None
    peak_rss_bytes: int | None = None
    runs: int = 0
    error: str = ""

    @property
    def text_encoder(self) -> float | None:
        return self.parts.get(TEXT_ENCODER)

    @property
    def unet(self) -> float | None:
        return self.parts.get(UNET)

    @property
    def decoder(self) -> float | None:
        return self.parts.get(DECODER)

    @property
    def rest(self) -> float | None:
        return self.parts.get("rest")


COLUMNS: dict[str, Column] = {
    "backend": ("backend", str),
    "s": ("seconds", number(2)),
    "× anchor": ("speedup", number(2)),
    "CPU s": ("processor", number(2)),
    "× anchor, CPU": ("of_processor", number(2)),
    "text": ("text_encoder", number(3)),
    "UNet": ("unet", number(2)),
    "decoder": ("decoder", number(2)),
    "rest": ("rest", number(3)),
    "start s": ("from_start", number(1)),
    "start CPU s": ("processor_from_start", number(1)),
    "first peak MB": ("first_peak_bytes", number(0, 1e-6)),
    "peak MB": ("peak_rss_bytes", number(0, 1e-6)),
}


@dataclass(frozen=True)
class Plan:
    """How to measure; steps and guidance are the pipeline's own where they are None.

    Attributes:
        together: how many backends are in memory at a time; the first of all is in every group.
    """

    cache: Path
    rounds: int
    threads: int
    steps: int | None = None
    timed: int | None = None
    guidance: float | None = None
    together: int = 8

    def blank(self, subject: Subject, backend: str) -> ImageRow:
        steps = self.steps or subject.steps
        guidance = subject.guidance if self.guidance is None else self.guidance
        return ImageRow(subject.name, backend, steps, min(self.timed or steps, steps), guidance, self.threads)

    def worker(self, row: ImageRow) -> Worker:
        given = {"--steps": row.steps, "--timed": row.timed, "--guidance": row.guidance}
        options = [str(each) for option in given.items() for each in option]
        return Worker(row.model, row.backend, self.cache, threads=self.threads, program=PROGRAM, options=options)


def measure(subject: Subject, backends: Sequence[str], plan: Plan) -> Iterator[ImageRow]:
    """A row for each backend, the anchor first."""
    anchor, *others = dict.fromkeys(backends)
    size = max(plan.together - 1, 1)
    for start in range(0, max(len(others), 1), size):
        rows = measure_together([plan.blank(subject, each) for each in (anchor, *others[start : start + size])], plan)
        yield from rows[1:] if start else rows


def measure_together(rows: Sequence[ImageRow], plan: Plan) -> list[ImageRow]:
    """Backends that are in memory at the same time; the first is the anchor."""
    with ExitStack() as stack:
        workers = {row.backend: stack.enter_context(closing(plan.worker(row))) for row in rows}
        found = {row.backend: _started(workers[row.backend], row) for row in rows}
        running = [worker for name, worker in workers.items() if not found[name].error]
        timings = interleave(running, plan.rounds)
        anchor = timings.get(rows[0].backend, Timings())
        for worker in running:
            found[worker.name] = _stopped(worker, timed(found[worker.name], timings[worker.name], anchor))
    return list(found.values())


def _started(worker: Worker, row: ImageRow) -> ImageRow:
    Console(stderr=True).print(f"{row.model}: preparing and loading {row.backend}", style="dim")
    try:
        worker.prepare()
        begun = time.perf_counter()
        loaded = worker.start()
    except WorkerError as error:
        return replace(row, error=str(error))
    from_start = time.perf_counter() - begun + loaded["counted_seconds"]
    return replace(
        row,
        from_start=from_start,
        processor_from_start=loaded["processor_from_start"],
        first_peak_bytes=loaded["peak_rss_bytes"],
    )


def timed(row: ImageRow, timings: Timings, anchor: Timings) -> ImageRow:
    """The row with what its images took."""
    images = timings.answers
    if not images or timings.error:
        return replace(row, error=timings.error or "no image was drawn")
    return replace(
        row,
        seconds=statistics.median(timings.seconds),
        processor=statistics.median(image["processor"] for image in images),
        speedup=_ratio(anchor, timings, "seconds"),
        of_processor=_ratio(anchor, timings, "processor"),
        parts={part: statistics.median(image["parts"][part][1] for image in images) for part in images[0]["parts"]},
        runs=len(images),
    )


def _ratio(anchor: Timings, timings: Timings, what: str) -> float | None:
    ratios = [theirs[what] / mine[what] for theirs, mine in zip(anchor.answers, timings.answers)]
    return statistics.median(ratios) if ratios else None


def _stopped(worker: Worker, row: ImageRow) -> ImageRow:
    try:
        return replace(row, peak_rss_bytes=worker.stop()["peak_rss_bytes"])
    except WorkerError as error:
        return replace(row, error=row.error or str(error))


def main(
    models: Annotated[str, typer.Option(help="Comma-separated: digits, sd-tiny, sd15, sd-turbo.")] = "digits,sd-tiny",
    backends: Annotated[str, typer.Option(help="Comma-separated backends; the first is the anchor.")] = BACKENDS,
    steps: Annotated[int | None, typer.Option(min=1, help="Of an image; by default the pipeline's own.")] = None,
    timed_steps: Annotated[
        int | None, typer.Option("--timed", min=1, help="Take so many of them, and count the UNet's time for all.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="By default the pipeline's own; 1 or less is none.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Images of each backend, taken in turn.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of each backend; 0: as many as torch takes.")] = 0,
    together: Annotated[int, typer.Option(min=1, help="Backends in memory at a time.")] = 8,
    cache: Annotated[Path | None, typer.Option(help="Keep prepared pipelines here for later runs.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """Print what whole images take, and write it as JSON."""
    names = [name.strip() for name in backends.split(",")]
    subjects = [get_subject(name.strip()) for name in models.split(",")]
    for name in names:
        get_contender(name)
    rows: list[ImageRow] = []
    with artifact_cache(cache) as folder:
        plan = Plan(folder, rounds, threads or torch.get_num_threads(), steps, timed_steps, guidance, together)
        for subject in subjects:
            mine = list(measure(subject, names, plan))
            rows += mine
            print_table(f"one image by {subject.name}", COLUMNS, mine, caption(mine[0], rounds))
            if json is not None:
                write_json([asdict(row) for row in rows], json)


def caption(row: ImageRow, rounds: int) -> str:
    """What the figures of a table are of."""
    guided = f"guided by {row.guidance:g}" if row.guidance > 1 else "unguided"
    taken = "" if row.timed == row.steps else f", of which {row.timed} were taken and the UNet's time counted for all"
    kept = f"medians of {rounds} interleaved images, {row.threads} threads; anchor {row.backend}"
    return f"{row.steps} steps, {guided}{taken}; {kept}; parts in CPU seconds"


if __name__ == "__main__":
    typer.run(main)
