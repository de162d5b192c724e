"""``qdiff bench DIR``: seconds per step of the float and of quantized networks, taken in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from tqdm import tqdm

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import BackendName, BatchSize, Json, Prompt, Prompts, SavedFolder, SourceOverride
from qdiff_fx.cli.output import Output
from qdiff_fx.cli.saved import source_of

FLOAT = "float32 eager"


def bench(
    folder: SavedFolder,
    against: Annotated[
        list[Path] | None, typer.Option("--against", metavar="DIR", help="Another of the same network; repeatable.")
    ] = None,
    source: SourceOverride = "",
    backend: BackendName = "native",
    batch_size: BatchSize = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed steps of each network.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Steps before timing; the first one compiles.")] = 2,
    prompts: Prompts = None,
    prompt: Prompt = None,
    json: Json = None,
) -> None:
    """Time one step of the float network and of quantized ones, in turns so that all meet the same machine."""
    output = Output(json)
    quantized = load_qdiff(folder, backend=backend)
    origin = source_of(quantized, folder, source, output, prompt, prompts)
    inputs = origin.example_inputs(batch_size)
    networks: dict[str, Callable[..., Any]] = {FLOAT: origin.unet, backend: quantized}
    networks |= {str(each): load_qdiff(each, backend=backend) for each in against or ()}
    output.note("compiling and warming up")
    seconds = interleaved_seconds(networks, inputs, rounds, warmup, progress=output.interactive)
    batch = len(next(iter(inputs.values())))
    speedup = median(seconds[FLOAT]) / median(seconds[backend])
    output.show(_table(seconds, batch))
    output.figures(
        {
            "source": origin.identifier,
            "backend": backend,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "seconds_per_step": {
                name: {"median": median(times), "min": min(times), "max": max(times)} for name, times in seconds.items()
            },
            "speedup": speedup,
        }
    )


@torch.no_grad()
def interleaved_seconds(
    networks: Mapping[str, Callable[..., Any]], inputs: Mapping[str, Any], rounds: int, warmup: int, *, progress: bool
) -> dict[str, list[float]]:
    """Seconds of each of ``rounds`` calls per network; in every round each network is called once.

    Their order is drawn anew for every round: what a network finds in the caches depends on which came before it.
    """
    for network in networks.values():
        for _ in range(warmup):
            network(**inputs)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    order = random.Random(0)
    for _ in tqdm(range(rounds), desc="rounds", leave=False, disable=not progress):
        for name in order.sample(list(networks), len(networks)):
            start = time.perf_counter()
            networks[name](**inputs)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _table(seconds: Mapping[str, list[float]], batch: int) -> Table:
    table = Table(title=f"seconds per step, batch {batch}, {torch.get_num_threads()} threads")
    for column in ("network", "median", "min", "max", "speedup"):
        table.add_column(column, justify="left" if column == "network" else "right")
    baseline = median(seconds[FLOAT])
    for name, times in seconds.items():
        figures = (median(times), min(times), max(times))
        table.add_row(name, *(f"{value:.4f}" for value in figures), f"{baseline / median(times):.2f}×")
    return table
