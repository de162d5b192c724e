"""Every Python block of README and docs runs, on networks of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import Block, blocks
from tests.docs.python_blocks import Run, execute, run_of

RUN = [(block, run) for block in blocks() if (run := run_of(block)) is not None]


def parameters() -> list[Any]:
    return [pytest.param(block, run, id=str(block), marks=[] if run.quick else pytest.mark.slow) for block, run in RUN]


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about small parts
@pytest.mark.parametrize(("block", "run"), parameters())
def test_it_runs(
    block: Block, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    for fixture in run.around:
        request.getfixturevalue(fixture)
    execute(block, run, {name: request.getfixturevalue(fixture) for name, fixture in run.given.items()})
    assert [file for file in run.leaves if not (tmp_path / file).is_file()] == []
