"""From a saved network to its first step in a new process, with the kernels compiled before and on a new machine.

``python -m benchmarks.startup --models anime,sd15 --cache build/bench``
"""

from __future__ import annotations

import json as jsonlib
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import save_file

from benchmarks.artifacts import artifact_cache, artifact_folder, ensure_artifact
from benchmarks.lineup import get_contender
from benchmarks.networks import Network, get_network
from benchmarks.output import Column, number, print_table, write_json

# What a user's program does; it imports nothing of the benchmarks, so that time and memory are its own.
PROGRAM = """
import json, sys, time
begin = time.perf_counter()
import torch
imported = time.perf_counter()
from qdiff_fx import load_qdiff
network = load_qdiff(sys.argv[1])
loaded = time.perf_counter()
from safetensors.torch import load_file
inputs = load_file(sys.argv[2])
seconds = []
for _ in range(4):
    start = time.perf_counter()
    network(**inputs)
    seconds.append(time.perf_counter() - start)
# Not getrusage's: that of the parent counts in it, from before this program took its place.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"import_torch": imported - begin, "load": loaded - imported, "first_step": seconds[0], "peak": peak}))
"""


@dataclass(frozen=True)
class StartRow:
    """Medians over fresh processes: seconds, and the largest resident set over four steps.

    Attributes:
        kernels: "compiled" before, or "new machine": compiled by this process.
        total: of importing torch, loading and the first step.
    """

    model: str
    variant: str
    kernels: str
    import_torch: float
    load: float
    first_step: float
    total: float
    peak_rss_bytes: float  # from /proc: Linux only


COLUMNS: dict[str, Column] = {
    "network": ("model", str),
    "weights": ("variant", str),
    "kernels": ("kernels", str),
    "import torch s": ("import_torch", number(1)),
    "load s": ("load", number(1)),
    "first step s": ("first_step", number(1)),
    "together s": ("total", number(1)),
    "peak GB": ("peak_rss_bytes", lambda value: f"{value / 1e9:.2f}"),
}


def start(folder: Path, inputs: Path, environment: dict[str, str]) -> dict[str, float]:
    """One fresh process."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(inputs)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise typer.BadParameter(f"{folder} does not run: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = jsonlib.loads(done.stdout.splitlines()[-1])
    return found


def measure(network: Network, variant: str, folder: Path, rounds: int) -> list[StartRow]:
    """With compiled kernels, then without."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs.safetensors"
        save_file({key: value.contiguous() for key, value in network.inputs().items()}, inputs)
        start(folder, inputs, {})
        for kernels in ("compiled", "new machine"):
            runs = []
            for index in range(rounds if kernels == "compiled" else 1):
                place = {} if kernels == "compiled" else {"QDIFF_KERNELS_CACHE": str(Path(name) / str(index))}
                runs.append(start(folder, inputs, place))
            middle: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            peak = middle.pop("peak")
            rows.append(
                StartRow(network.name, variant, kernels, **middle, total=sum(middle.values()), peak_rss_bytes=peak)
            )
    return rows


def main(
    models: Annotated[str, typer.Option(help="Comma-separated: anime, cifar10, sd15.")] = "anime",
    variants: Annotated[str, typer.Option(help="Comma-separated: w8a8, w4a8.")] = "w8a8",
    cache: Annotated[Path | None, typer.Option(help="Keep the prepared networks here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes with compiled kernels.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """Print how long a new process takes to its first step, and its memory."""
    rows: list[StartRow] = []
    with artifact_cache(cache) as folder:
        for model in models.split(","):
            for variant in variants.split(","):
                network, contender = get_network(model), get_contender(f"native-{variant}")
                ensure_artifact(folder, network, contender)
                artifact = artifact_folder(folder, network, contender)
                assert artifact is not None
                rows += measure(network, variant, artifact, rounds)
    print_table("start", COLUMNS, rows, f"median of {rounds} processes, of one where kernels are compiled")
    if json is not None:
        write_json([asdict(row) for row in rows], json)


if __name__ == "__main__":
    typer.run(main)
