"""Where long work's reports go."""

from __future__ import annotations

import pytest
from listener import Listener

from qdiff_fx.progress import phase


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
