"""Where long work's reports go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qdiff_fx.progress import Phase, phase


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    @contextmanager
    def phase(self, name: str, total: float, unit: str) -> Iterator[Phase]:
        self.heard.append((name, total, unit))
        yield self
        self.heard.append(("end",))

    def advance(self, count: float = 1) -> None:
        self.heard.append(("advance", count))

    def skip(self, count: float = 1) -> None:
        self.heard.append(("skip", count))

    def note(self, line: str) -> None:
        self.heard.append(("note", line))


def work(progress) -> None:
    with phase(progress, "counting", 4, "number") as counting:
        counting.skip(2)
        counting.advance()
        counting.note("three is odd")
        counting.advance()


def test_a_listener_is_told_of_everything():
    listener = Listener()
    work(listener)
    assert listener.heard == [
        ("counting", 4, "number"),
        ("skip", 2),
        ("advance", 1),
        ("note", "three is odd"),
        ("advance", 1),
        ("end",),
    ]


def test_a_bar_of_its_own_ends_at_the_total(capsys: pytest.CaptureFixture[str]):
    work(True)
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "4/4" in shown
    assert "three is odd" in shown


def test_nobody_hears_of_silent_work(capsys: pytest.CaptureFixture[str]):
    work(False)
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_phase_of_a_bar(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ZeroDivisionError), phase(True, "dividing", 1, "number"):
        raise ZeroDivisionError
    assert capsys.readouterr().err.endswith("\n")
