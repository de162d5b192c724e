"""The list of mutants is one that can be run: each is a change of a text that stands in its file once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def test_there_are_twenty():
    assert len({(mutant.file, mutant.before) for mutant in MUTANTS}) == 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.before}")
def test_it_can_be_made(mutant):
    text = (ROOT / "qdiff_fx" / mutant.file).read_text()
    assert text.count(mutant.before) == 1
    assert mutant.before != mutant.after
    compile(text.replace(mutant.before, mutant.after), mutant.file, "exec")
    assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests.split())
