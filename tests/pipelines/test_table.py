"""The tables of docs/pipelines.md say what is so."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.pipelines.line import WORKS, Line
from tests.pipelines.tables import DOCS, LINES, TABLES, row, rows_in, summary, written

QUICK = ("DDPMPipeline",)
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about small parts


def named(name: str) -> Line:
    return next(line for line in LINES if line.name == name)


def test_every_line_is_in_the_docs_and_nothing_else() -> None:
    text = DOCS.read_text()
    assert set(rows_in(text)) == {line.name for line in LINES}
    assert written(text, rows_in(text)) == text
    assert summary(rows_in(text)) in text


def test_names_are_there_once() -> None:
    assert max(Counter(line.name for line in LINES).values()) == 1


def test_thirty_pipelines_and_features_work_or_are_refused_with_a_sentence() -> None:
    rows = rows_in(DOCS.read_text())
    tried = [line.name for table in TABLES[:2] for line in table.lines]
    assert len(tried) >= 30
    for name in tried:
        _, _, *kinds, said, _ = (part.strip() for part in rows[name].split("|"))
        assert all(kind in (WORKS, "refused", "–") for kind in kinds)
        assert bool(said) == (kinds != [WORKS, WORKS])


@pytest.mark.parametrize("name", QUICK)
def test_what_the_docs_say(name: str) -> None:
    assert row(named(name)) == rows_in(DOCS.read_text())[name]


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if line.name not in QUICK], ids=lambda line: line.name)
def test_what_the_docs_say_of_all_lines(line: Line) -> None:
    if line.missing:
        pytest.skip(f"needs {', '.join(line.missing)}")
    assert row(line) == rows_in(DOCS.read_text())[line.name]
