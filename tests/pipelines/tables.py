"""All lines, and the tables of docs/pipelines.md that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.pipelines import features, frames, images, schedulers, stages, transformers
from tests.pipelines.line import WORKS, Line

DOCS = Path(__file__).parents[2] / "docs" / "pipelines.md"
DTYPES = (torch.float32, torch.float16)
HEAD = "| | float32 | float16 | |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Table:
    title: str
    lines: Sequence[Line]


TABLES = (
    Table("Pipelines", [*images.LINES, *stages.LINES, *frames.LINES, *transformers.LINES]),
    Table("What is done to a pipeline", features.LINES),
    Table("Schedulers", schedulers.LINES),
)
LINES = [line for table in TABLES for line in table.lines]


def row(line: Line) -> str:
    """The line's row, tried."""
    outcomes = [line.outcome(dtype) for dtype in DTYPES]
    said = list(dict.fromkeys(outcome.said for outcome in outcomes if outcome.said))
    return f"| {line.name} | {' | '.join(outcome.kind for outcome in outcomes)} | {'<br>'.join(said)} |"


def rows_in(text: str) -> dict[str, str]:
    """The rows of the tables in a text, by the name of their line."""
    found = (re.match(r"\| (.+?) \| (?:[^|]+) \| (?:[^|]+) \| .*\|$", each) for each in text.splitlines())
    return {match[1]: match[0] for match in found if match}


def written(text: str, rows: Mapping[str, str]) -> str:
    """The text with its tables made of these rows."""
    for table in TABLES:
        made = HEAD + "".join(rows[line.name] + "\n" for line in table.lines if line.name in rows)
        pattern = rf"(## {re.escape(table.title)}\n.*?\n\n)\| \| float32 .*?\n(?=\n|\Z)"
        text, count = re.subn(pattern, lambda match, made=made: match[1] + made, text, flags=re.DOTALL)
        assert count == 1, table.title
    return re.sub(r"\d+ of \d+ work in both types\.", summary(rows), text)


def summary(rows: Mapping[str, str]) -> str:
    """How many of the lines work."""
    working = sum(f"| {WORKS} | {WORKS} |" in each for each in rows.values())
    return f"{working} of {len(rows)} work in both types."
