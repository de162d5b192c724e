"""From a saved network to its first step in a new process, with the kernels compiled before and on a new machine.

``python -m benchmarks.startup --models anime,sd15 --cache build/bench``

``python -m benchmarks.startup --models sdxl --variants w4a8 --saved DIR --rounds 1 --steps 1`` takes a network that was
saved before, as one that is too large to be prepared here is by `benchmarks.quantize_cost`.
"""

from __future__ import annotations

import json as jsonlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.artifacts import artifact_cache, artifact_folder, ensure_artifact
from benchmarks.lineup import get_contender
from benchmarks.networks import Network, get_network
from benchmarks.output import Column, number, print_table, write_json
from qdiff_fx.storage.artifact import artifact_bytes

COMPILED, NEW_MACHINE = "compiled", "new machine"
STEPS = 4

# What a user's program does; it imports nothing of the benchmarks, so that time and memory are its own.
PROGRAM = """
import json, sys, time
begin = time.perf_counter()
import torch
imported = time.perf_counter()
from qdiff_fx import load_qdiff
network = load_qdiff(sys.argv[1])
loaded = time.perf_counter()
def resident(what):
    # Not getrusage's: that of the parent counts in it, from before this program took its place.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status[what].split()[0]) * 1024
found = {"import_torch": imported - begin, "load": loaded - imported, "loaded_rss": resident("VmRSS")}
from safetensors.torch import load_file
inputs = {}
for name, tensor in load_file(sys.argv[2]).items():
    outer, _, inner = name.rpartition(".")
    (inputs.setdefault(outer, {}) if outer else inputs)[inner] = tensor
seconds = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    network(**inputs)
    seconds.append(time.perf_counter() - start)
print(json.dumps({**found, "first_step": seconds[0], "peak_rss": resident("VmHWM")}))
"""
MEMORY = ("loaded_rss", "peak_rss")


@dataclass(frozen=True)
class StartRow:
    """Medians over fresh processes: seconds, and bytes of memory.

    Attributes:
        kernels: "compiled" before, or "new machine": compiled by this process.
        total: of importing torch, loading and the first step.
        stored_bytes: what the saved network takes on disk.
        loaded_rss_bytes: resident once it is loaded.
        peak_rss_bytes: the largest resident set over loading and all steps.
    """

    model: str
    variant: str
    kernels: str
    import_torch: float
    load: float
    first_step: float
    total: float
    stored_bytes: int
    loaded_rss_bytes: float  # from /proc: Linux only
    peak_rss_bytes: float


COLUMNS: dict[str, Column] = {
    "network": ("model", str),
    "weights": ("variant", str),
    "kernels": ("kernels", str),
    "import torch s": ("import_torch", number(1)),
    "load s": ("load", number(1)),
    "first step s": ("first_step", number(1)),
    "together s": ("total", number(1)),
    "on disk GB": ("stored_bytes", number(2, 1e-9)),
    "loaded GB": ("loaded_rss_bytes", number(2, 1e-9)),
    "peak GB": ("peak_rss_bytes", number(2, 1e-9)),
}


def start(folder: Path, inputs: Path, environment: dict[str, str], steps: int = STEPS) -> dict[str, float]:
    """One fresh process."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(inputs), str(steps)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise typer.BadParameter(f"{folder} does not run: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = jsonlib.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    network: Network,
    variant: str,
    folder: Path,
    rounds: int,
    steps: int = STEPS,
    machines: Sequence[str] = (COMPILED, NEW_MACHINE),
) -> list[StartRow]:
    """With compiled kernels, then without."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs.safetensors"
        save_file(dict(flat(network.inputs())), inputs)
        start(folder, inputs, {}, 1)
        for kernels in machines:
            runs = []
            for index in range(rounds if kernels == COMPILED else 1):
                place = {} if kernels == COMPILED else {"QDIFF_KERNELS_CACHE": str(Path(name) / str(index))}
                runs.append(start(folder, inputs, place, steps))
            middle: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            memory = {f"{key}_bytes": middle.pop(key) for key in MEMORY}
            total, stored = sum(middle.values()), artifact_bytes(folder)
            rows.append(StartRow(network.name, variant, kernels, **middle, total=total, stored_bytes=stored, **memory))
    return rows


def flat(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """A step's arguments by name; those of one that is a mapping are named after it."""
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in flat(value))
        else:
            yield name, value.contiguous()


def main(
    models: Annotated[str, typer.Option(help="Comma-separated networks.")] = "anime",
    variants: Annotated[str, typer.Option(help="Comma-separated: w8a8, w4a8.")] = "w8a8",
    cache: Annotated[Path | None, typer.Option(help="Keep the prepared networks here.")] = None,
    saved: Annotated[Path | None, typer.Option(help="The saved network; kernels are not compiled anew.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes with compiled kernels.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each.")] = STEPS,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """Print how long a new process takes to its first step, and its memory."""
    rows: list[StartRow] = []
    networks = [get_network(model) for model in models.split(",")]
    contenders = {variant: get_contender(f"native-{variant}") for variant in variants.split(",")}
    with artifact_cache(cache) as folder:
        for network, (variant, contender) in product(networks, contenders.items()):
            if saved is not None:
                rows += measure(network, variant, saved, rounds, steps, (COMPILED,))
                continue
            ensure_artifact(folder, network, contender)
            artifact = artifact_folder(folder, network, contender)
            assert artifact is not None
            rows += measure(network, variant, artifact, rounds, steps)
    print_table("start", COLUMNS, rows, f"median of {rounds} processes, of one where kernels are compiled")
    if json is not None:
        write_json([asdict(row) for row in rows], json)


if __name__ == "__main__":
    typer.run(main)
