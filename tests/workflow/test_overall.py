"""One progress over all phases: what is left, and what each took."""

from __future__ import annotations

import pytest

from qdiff_fx.progress import phase
from qdiff_fx.workflow.overall import Overall, State, Taken
from qdiff_fx.workflow.screen import BarScreen, LineScreen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Seen:
    def __init__(self) -> None:
        self.states: list[State] = []
        self.notes: list[str] = []

    def begin(self, state: State) -> None:
        self.states.append(state)

    def update(self, state: State) -> None:
        self.states.append(state)

    def end(self, state: State, taken: Taken) -> None:
        self.states.append(state)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def close(self) -> None:
        self.states.clear()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def overall(clock: Clock, seen: Seen) -> Overall:
    return Overall(seen, clock)


def test_nothing_is_known_without_estimates(overall: Overall, seen: Seen) -> None:
    with phase(overall, "capturing", None, "network"):
        pass
    assert [state.seconds_left for state in seen.states] == [None, None]
    assert overall.taken["capturing"].seconds == 0


def test_as_estimated(overall: Overall, clock: Clock) -> None:
    overall.expect({"sampling": 40.0, "rounding": 60.0})
    assert overall.seconds_left() == 100
    with phase(overall, "sampling", 4, "sample") as sampling:
        for done in range(1, 5):
            clock.now += 10
            sampling.advance()
            assert overall.seconds_left() == pytest.approx(100 - 10 * done)
            assert overall.state().share == pytest.approx(0.1 * done)
    with phase(overall, "rounding", None, "layer"):
        clock.now += 20
        assert overall.seconds_left() == pytest.approx(40)
    assert (overall.seconds_left(), overall.state().share) == (0, 1)


def test_a_phase_that_is_slower_corrects_those_to_come(overall: Overall, clock: Clock) -> None:
    overall.expect({"sampling": 40.0, "rounding": 60.0})
    with phase(overall, "sampling", 4, "sample") as sampling:
        clock.now += 20
        sampling.advance()
        assert overall.seconds_left() == pytest.approx(60 + 60)  # its own pace; nothing known of the next one
        clock.now += 60
        sampling.advance(3)
    assert overall.seconds_left() == pytest.approx(2 * 60)


def test_the_first_steps_are_not_believed_alone(overall: Overall, clock: Clock) -> None:
    overall.expect({"sampling": 100.0})
    with phase(overall, "sampling", 100, "sample") as sampling:
        clock.now += 50
        sampling.advance()
        left = overall.seconds_left()
        assert left is not None
        assert 100 < left < 400


def test_what_an_earlier_run_did_says_nothing_about_speed(overall: Overall, clock: Clock) -> None:
    overall.expect({"sampling": 100.0})
    with phase(overall, "sampling", 10, "sample") as sampling:
        sampling.skip(5)
        assert overall.seconds_left() == pytest.approx(50)
        clock.now += 30
        sampling.advance(3)
        assert overall.seconds_left() == pytest.approx(20)


def test_phases_within_a_phase_belong_to_it(overall: Overall, clock: Clock, seen: Seen) -> None:
    with phase(overall, "rounding", 2, "block") as outer:
        with phase(overall, "calibrating", 5, "batch") as inner:
            inner.advance()
            inner.note("a line")
        outer.advance()
    assert {state.phase for state in seen.states} == {"rounding"}
    assert seen.notes == ["a line"]
    assert set(overall.taken) == {"rounding"}


def test_a_phase_of_the_same_name_is_the_same(overall: Overall, clock: Clock, seen: Seen) -> None:
    with phase(overall, "rounding", None, "layer"):
        clock.now += 5
        with phase(overall, "rounding", 2, "layer") as inner:
            inner.advance()
    assert overall.taken["rounding"].seconds == 5
    assert [(state.done, state.total) for state in seen.states] == [(0, None), (1, 2), (1, 2)]


def test_a_phase_that_fails_is_over(overall: Overall, seen: Seen) -> None:
    with overall, pytest.raises(ZeroDivisionError), phase(overall, "dividing", 1, "number"):
        raise ZeroDivisionError
    assert "dividing" in overall.taken
    assert not seen.states  # closed


def test_phases_of_one_name_add_up(overall: Overall, clock: Clock) -> None:
    for seconds in (1, 2):
        with phase(overall, "calibrating", None, "batch"):
            clock.now += seconds
    assert overall.taken["calibrating"].seconds == 3
    assert overall.taken["calibrating"].peak_bytes > 1 << 20


class TestLines:
    def lines(self, clock: Clock, seconds: float, total: int) -> list[str]:
        said: list[str] = []
        overall = Overall(LineScreen(said.append, clock), clock)
        overall.expect({"sampling": seconds * total})
        with phase(overall, "sampling", total, "sample") as sampling:
            for _ in range(total):
                clock.now += seconds
                sampling.advance()
        return said

    def test_a_short_phase_begins_and_ends(self, clock: Clock) -> None:
        assert self.lines(clock, 0.1, 20) == ["sampling …", "sampling: took 2.0 s"]

    def test_every_tenth_of_a_longer_one(self, clock: Clock) -> None:
        said = self.lines(clock, 1, 100)
        assert len(said) == 2 + 10
        assert said[5] == "sampling 50/100 samples, 50% of everything, about 50 s left"

    def test_every_half_minute_of_a_long_one(self, clock: Clock) -> None:
        assert len(self.lines(clock, 10, 60)) == 2 + 600 // 30


def test_one_bar_describes_the_phase(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Overall(BarScreen(), clock) as overall:
        overall.expect({"sampling": 10.0, "rounding": 30.0})
        with phase(overall, "sampling", 2, "batch") as sampling:
            assert "sampling 0/2 batches, about 40 s left" in capsys.readouterr().err
            clock.now += 10
            sampling.advance(2)
            sampling.note("a note")
        shown = capsys.readouterr().err
        assert "25%|" in shown
        assert "a note\n" in shown
        assert "sampling: took 10 s\n" in shown
        # Nothing is left of it where something may be printed.
        assert shown.rpartition("\r")[0].rpartition("\r")[2].strip() == ""
    assert capsys.readouterr().err.strip("\r ") == ""
