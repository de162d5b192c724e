"""Something is done with every block of README and docs, or a reason says why not."""

from __future__ import annotations

import pytest

from tests.docs.blocks import Block, blocks
from tests.docs.not_run import NOT_RUN, reason
from tests.docs.python_blocks import RUNS, run_of
from tests.test_recipes import RECIPES

ALL = blocks()


@pytest.mark.parametrize("block", ALL, ids=str)
def test_something_is_done_with_it(block: Block) -> None:
    runs = [
        block.language == "sh",
        block.language == "python" and block.is_a_file and block.page in {f"{each}.md" for each in RECIPES},
        block.language == "python" and run_of(block) is not None,
        bool(reason(block)),
    ]
    assert runs.count(True) == 1, f"say in tests/docs how {block} is run, or why it is not"


def test_nothing_is_listed_that_is_not_there() -> None:
    assert [run for run in RUNS if [run_of(block) for block in ALL].count(run) != 1] == []
    held = [[held in block.text and page == block.page for block in ALL].count(True) for page, held in NOT_RUN]
    assert held == [1] * len(NOT_RUN)


def test_there_are_blocks() -> None:
    assert len(ALL) > 50
    assert {"README.md", "cli.md", "diffusers.md", "quality.md"} <= {block.page for block in ALL}
