"""Timestep bins, the denoising loop, guidance and the replacing of files are each written down once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(file for part in ("qdiff_fx", "benchmarks", "examples") for file in (ROOT / part).rglob("*.py"))

# What only the one place may do -> that place. Each pattern must be found there, or it tests nothing.
FACTS = {
    "a bin of the schedule": (
        r"num_train_timesteps\s*,\s*rounding_mode|/\s*(\w+\.)*num_train_timesteps|num_train_timesteps\s*/\s*(?!1\b)\w",
        "qdiff_fx/quant/timestep_bins.py",
    ),
    "a step of a scheduler": (r"\bscheduler\.step\(", "qdiff_fx/sampling/loop.py"),
    "guidance": (r"\w+ \+ [\w.]*scale \* \(", "qdiff_fx/sampling/guidance.py"),
    "the hooks of a recorder": (r"register_forward_pre_hook\(\w+, with_kwargs", "qdiff_fx/sampling/recorder.py"),
    "replacing a file": (r"\bos\.(replace|rename|link)\(|\.(replace|rename)\(\w*(folder|file|path|target)\w*\b",
                         "qdiff_fx/atomic.py"),
    "the names of a timestep": (r'"timestep", "t"|"timesteps", "t"', "qdiff_fx/signature/roles.py"),
}  # fmt: skip


@pytest.mark.parametrize("fact", FACTS)
def test_is_in_one_place(fact: str) -> None:
    pattern, place = FACTS[fact]
    found = {file.relative_to(ROOT).as_posix() for file in CODE if re.search(pattern, file.read_text())}
    assert found == {place}, f"{fact} is also in {sorted(found - {place})}"
