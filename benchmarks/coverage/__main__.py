"""Every network in turn, and the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from benchmarks.coverage import audio, autoencoders, images, papers, transformers, video  # noqa: F401, they list networks
from benchmarks.coverage.network import NETWORKS
from benchmarks.coverage.outcome import Outcome, outcome
from benchmarks.coverage.table import document, terminal

TIMEOUT = 300
AT_ONCE = 8  # networks a process


def main(
    only: Annotated[str, typer.Option(help="Networks whose family or name holds this.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the document here.")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Which diffusion networks quantize, and how well: one row each."""
    chosen = [each for each in NETWORKS if only.lower() in each.id.lower()]
    if child:
        torch.set_num_threads(1)
        for each in chosen:
            print(json.dumps(asdict(outcome(each))), flush=True)
        return
    rows = [_in_a_process(each.id, each.family, each.name) for each in tqdm(chosen, leave=False)]
    print(terminal(rows))
    print(Counter("crashed" if r.crashed else "refused" if r.refused else "works" for r in rows))
    if out:
        out.write_text(document(rows))


def _in_a_process(id: str, family: str, name: str) -> Outcome:
    """A network in a process of its own, so that one that dies or hangs is a row like others."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--child", "--only", id]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Outcome(id, family, name, crashed=f"no end within {TIMEOUT} s")
    rows = [Outcome(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith('{"id"')]
    for row in rows:
        if row.id == id:
            return row
    return Outcome(id, family, name, crashed=f"exit {done.returncode}: {done.stderr.strip()[-200:]}")


if __name__ == "__main__":
    typer.run(main)
