"""Seconds per UNet step: ours against the rivals, in interleaved runs.

``python -m benchmarks.unet_step --models anime,cifar10,sd15 --backends inductor,openvino-int8 --json out/steps.json``
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import torch
import typer
from rich.console import Console
from tqdm import tqdm

from benchmarks.artifacts import artifact_cache
from benchmarks.lineup import ANCHOR, BEST_OF, expand, get_contender
from benchmarks.networks import Network, get_network
from benchmarks.output import Column, number, print_table, write_json
from benchmarks.timing import Stepper, Timings, Worker, WorkerError, interleave

IDLE_CPU_LIMIT = 0.1
DEFAULT_BACKENDS = "native,inductor,torch-bf16,torch-compile,openvino-int8"


@dataclass(frozen=True)
class StepRow:
    """One backend on one network. Figures are None when it failed, and `error` says why.

    Attributes:
        seconds: median over the rounds.
        speedup: median over the rounds of the anchor's seconds in the same round over this backend's.
        gflop, gops: of convs and linears; attention's matmuls are counted in `attention_gflop` alone.
        peak_rss_bytes: largest resident set of the process that loaded and ran the network.
        resident_rss_bytes: its resident set at the end.
        idle_cpu_share: processor time it used while the others worked, per second it worked itself.
        best: for a row that stands for several contenders, the one that was fastest.
    """

    model: str
    backend: str
    batch: int
    gflop: float
    attention_gflop: float
    threads: int
    seconds: float | None = None
    seconds_min: float | None = None
    speedup: float | None = None
    gops: float | None = None
    runs: int = 0
    peak_rss_bytes: int | None = None
    resident_rss_bytes: int | None = None
    load_seconds: float | None = None
    first_step_seconds: float | None = None
    idle_cpu_share: float | None = None
    best: str = ""
    error: str = ""


class WorkerLike(Stepper, Protocol):
    def prepare(self) -> None: ...
    def start(self) -> dict[str, float]: ...
    def stop(self) -> dict[str, int]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    cache: Path
    rounds: int
    warmup: int
    threads: int
    together: int | None = None

    def worker(self, network: Network, name: str) -> WorkerLike:
        return Worker(network.name, name, self.cache, threads=self.threads, warmup=self.warmup)


def measure(network: Network, names: Sequence[str], plan: Plan) -> list[StepRow]:
    """Rows of the contenders `names` on one network, the anchor first.

    As many run together as memory allows (`plan.together`, or the network's own limit); the anchor runs in every
    group, so that ratios to it hold across groups.
    """
    rows: dict[str, StepRow] = {}
    for group in groups(expand(names), plan.together or network.together):
        for name, row in measure_group(network, group, plan).items():
            rows.setdefault(name, row)
    return [*rows.values(), *best_rows(names, rows)]


def groups(names: Sequence[str], together: int) -> Iterator[list[str]]:
    """Groups of at most `together` names, each led by the anchor."""
    others = [name for name in names if name != ANCHOR]
    size = max(together - 1, 1)
    for start in range(0, max(len(others), 1), size):
        yield [ANCHOR, *others[start : start + size]]


def measure_group(network: Network, names: Sequence[str], plan: Plan) -> dict[str, StepRow]:
    """Rows of contenders that are in memory at the same time."""
    work = network.work()
    blank = {
        name: StepRow(network.name, name, network.batch, work.gflop, work.attention_gflop, plan.threads)
        for name in names
    }
    with _workers(network, names, plan) as workers:
        rows = {worker.name: _start(worker, blank[worker.name]) for worker in workers}
        running = [worker for worker in workers if not rows[worker.name].error]
        with tqdm(total=plan.rounds * len(running), desc=f"{network.name} steps", leave=False) as bar:
            timings = interleave(running, plan.rounds, on_step=lambda name: bar.update())
        anchor = timings.get(ANCHOR, Timings()).seconds
        for worker in running:
            rows[worker.name] = _stop(worker, _with_timings(rows[worker.name], timings[worker.name], anchor))
    return rows


@contextmanager
def _workers(network: Network, names: Sequence[str], plan: Plan) -> Iterator[list[WorkerLike]]:
    workers = [plan.worker(network, name) for name in names]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _start(worker: WorkerLike, row: StepRow) -> StepRow:
    Console(stderr=True).print(f"{row.model}: preparing and loading {row.backend}", style="dim")
    try:
        worker.prepare()
        loaded = worker.start()
    except WorkerError as error:
        return replace(row, error=str(error))
    return replace(row, load_seconds=loaded["load_seconds"], first_step_seconds=loaded["first_step_seconds"])


def _with_timings(row: StepRow, timings: Timings, anchor: Sequence[float]) -> StepRow:
    if not timings.seconds or timings.error:
        return replace(row, error=timings.error or "no step was taken")
    seconds = statistics.median(timings.seconds)
    ratios = [theirs / mine for theirs, mine in zip(anchor, timings.seconds)]
    return replace(
        row,
        seconds=seconds,
        seconds_min=min(timings.seconds),
        speedup=statistics.median(ratios) if ratios else None,
        gops=row.gflop / seconds,
        runs=len(timings.seconds),
        idle_cpu_share=timings.idle_cpu_seconds / sum(timings.seconds),
    )


def _stop(worker: WorkerLike, row: StepRow) -> StepRow:
    try:
        memory = worker.stop()
    except WorkerError as error:
        return replace(row, error=row.error or str(error))
    return replace(row, peak_rss_bytes=memory["peak_rss_bytes"], resident_rss_bytes=memory["resident_rss_bytes"])


def best_rows(names: Sequence[str], rows: dict[str, StepRow]) -> Iterator[StepRow]:
    """For every alias among `names`, the row of its fastest member under the alias's name."""
    for alias in names:
        finished = [rows[member] for member in BEST_OF.get(alias, ()) if rows[member].speedup is not None]
        if finished:
            # By ratio and not by seconds: members may have run in different groups.
            fastest = max(finished, key=lambda row: row.speedup or 0)
            yield replace(fastest, backend=alias, best=fastest.backend)


COLUMNS: dict[str, Column] = {
    "backend": ("backend", str),
    "s/step": ("seconds", number(4)),
    "× anchor": ("speedup", number(2)),
    "GOP/s": ("gops", number(0)),
    "peak MB": ("peak_rss_bytes", number(0, 1e-6)),
    "load s": ("load_seconds", number(1)),
    "first step s": ("first_step_seconds", number(1)),
    "best": ("best", str),
}


def main(
    models: Annotated[str, typer.Option(help="Comma-separated networks.")] = "anime,cifar10,sd15",
    backends: Annotated[str, typer.Option(help="Comma-separated backends; the anchor is added.")] = DEFAULT_BACKENDS,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each backend, taken in turn.")] = 7,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before the first that counts.")] = 2,
    threads: Annotated[int, typer.Option(help="Threads of each backend; 0: as many as torch takes.")] = 0,
    together: Annotated[int, typer.Option(help="Backends in memory at a time; 0: by the network.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Keep prepared networks here for later runs.")] = None,
) -> None:
    """Median seconds per UNet step, interleaved, with GOP/s and peak memory, as a table and as JSON."""
    names = [name.strip() for name in backends.split(",")]
    networks = [get_network(name.strip()) for name in models.split(",")]
    for name in expand(names):
        get_contender(name)
    rows: list[StepRow] = []
    with artifact_cache(cache) as folder:
        plan = Plan(folder, rounds, warmup, threads or torch.get_num_threads(), together or None)
        for network in networks:
            rows += measure(network, names, plan)
            _print(network, rows)
            if json is not None:
                write_json([asdict(row) for row in rows], json)


def _print(network: Network, rows: Sequence[StepRow]) -> None:
    mine = [row for row in rows if row.model == network.name]
    first = mine[0]
    title = f"{network.name}, batch {network.batch}: {first.gflop:.1f} GFLOP + attention {first.attention_gflop:.1f}"
    caption = f"median of {first.runs} interleaved steps, {first.threads} threads; anchor {ANCHOR}"
    print_table(title, COLUMNS, mine, caption)
    spinning = [row.backend for row in mine if (row.idle_cpu_share or 0) > IDLE_CPU_LIMIT]
    if spinning:
        Console(stderr=True).print(f"[yellow]not idle while the others worked:[/yellow] {', '.join(spinning)}")


if __name__ == "__main__":
    typer.run(main)
