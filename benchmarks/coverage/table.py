"""The rows as text: for the terminal, and as the document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

import torch

from benchmarks.coverage.outcome import Outcome
from qdiff_fx.kernels import status


def terminal(rows: Iterable[Outcome]) -> str:
    return "\n".join(f"{row.id:70} {_verdict(row)}  ({row.seconds:.0f} s)" for row in rows)


def _verdict(row: Outcome) -> str:
    if row.crashed:
        return f"CRASHED {row.crashed}"
    if row.refused:
        return f"refused: {row.refused}"
    layers = f"{row.integer} of {row.integer + row.floating} layers on integers"
    return f"{layers}, {row.reference_db:.1f} / {row.native_db:.1f} dB" + "".join(f"; {why}" for why in row.reasons)


HEAD = """# Which networks quantize

{count} small networks of {families} public families, with random weights, at W8A8 by the defaults. They show which
blocks, spellings and arguments are captured and which layers run on integers; how close a *trained* network comes is in
[quality.md](quality.md), how fast in [performance.md](performance.md). "Layers" counts those of `native` that run on
integers, of all; a split layer counts once. SQNR is over a schedule, on inputs it was not calibrated on, of
`reference` and of `native`, against the same network in float32. {machine}

```sh
python -m benchmarks.coverage --out docs/coverage.md
```

| family | network | layers on integers | SQNR dB | |
|---|---|---|---|---|
"""


def document(rows: list[Outcome]) -> str:
    """The table in Markdown."""
    text = HEAD.format(
        count=len(rows),
        families=len({row.family for row in rows}),
        machine=f"Torch {torch.__version__}, kernels {status().kernel or 'in plain torch'}.",
    )
    for family, members in groupby(rows, key=lambda row: row.family):
        for index, row in enumerate(members):
            text += f"| {'' if index else family} | {row.name} | {_cells(row)} |\n"
    return text


def _cells(row: Outcome) -> str:
    if row.crashed:
        return f"– | – | **crashes**: {_plain(row.crashed)}"
    if row.refused:
        return f"– | – | refused: {_plain(row.refused)}"
    notes = [f"in float: {_plain(why)}" for why in row.reasons]
    layers = f"{row.integer} of {row.integer + row.floating}"
    return f"{layers} | {row.reference_db:.1f} / {row.native_db:.1f} | {'; '.join(notes)}"


def _plain(text: str) -> str:
    without_places = re.sub(r"\S+\.(cpp|h):\d+: ", "", text)  # of somebody's build of torch
    return " ".join(without_places.split()).replace("|", "\\|")[:300]
