"""Times by a clock that the test turns."""

from __future__ import annotations

import pytest

from qdiff_fx.tuning import timing
from qdiff_fx.tuning.timing import Yardstick, take_turns


@pytest.fixture
def clock(monkeypatch):
    """A clock that runs only inside of steps, and on a machine that gets slower with every one of them."""

    class Clock:
        now, slowness = 0.0, 1.0

        def step(self, cost, seen=None):
            def call(value):
                self.now += cost * self.slowness
                self.slowness *= 1.01
                if seen is not None:
                    seen.append((cost, value))

            return call

    found = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: found.now)
    return found


def test_calls_take_turns_on_their_own_inputs(clock):
    seen: list[tuple[float, int]] = []
    calls = {key: clock.step(cost, seen) for key, cost in ((4, 1.0), (8, 2.0))}
    times = take_turns(calls, {4: [40], 8: [80]}, rounds=3)
    assert seen == [(1.0, 40), (2.0, 80)] * (timing.WARMUP + 3)
    assert all(len(each) == 3 for each in times.values())


def test_what_comes_before_a_call_is_not_timed(clock):
    prepare = clock.step(100.0)
    seen = []
    times = take_turns({4: clock.step(1.0)}, {4: [40]}, rounds=2, before=lambda key: seen.append(key) or prepare(0))
    assert seen == [4] * (timing.WARMUP + 2)
    assert max(times[4]) < 2.0


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_ratio_to_the_yardstick_stays_when_the_machine_slows_down(clock, factor):
    yardstick = Yardstick(lambda: clock.step(0.1), [0])
    first, later = (yardstick(lambda: clock.step(0.1 * factor)) / yardstick.seconds for _ in range(2))
    # Within a round the machine slows down by one per cent, for the second of them: half the time it is the other.
    assert first == pytest.approx(factor, rel=1e-3)
    assert later == pytest.approx(first)
    assert clock.slowness > 2


def test_both_are_lowered_anew_because_it_matters_where_they_lie(clock):
    luck = iter([0.9, 0.9, 1.1, 1.1])
    made = []

    def make():
        made.append(1)
        return clock.step(0.1 * next(luck))

    yardstick = Yardstick(lambda: clock.step(0.1), [0])
    assert yardstick(make) / yardstick.seconds == pytest.approx(1.0, rel=0.01)
    assert len(made) == timing.PAIRS


def test_what_is_lowered_second_has_no_advantage(clock):
    """On a machine where every other network that is made is a tenth faster."""
    luck = iter([1.0, *([1.0, 0.9] * timing.PAIRS)])

    def make():
        return clock.step(0.1 * next(luck))

    yardstick = Yardstick(make, [0])
    assert yardstick(make) / yardstick.seconds == pytest.approx(1.0, rel=0.01)


def test_long_steps_are_timed_less_often(clock):
    counts = []
    for cost in (1e-4, 0.05, 10.0):
        clock.slowness = 1.0
        seen: list[tuple[float, int]] = []
        yardstick = Yardstick(lambda: clock.step(cost), [0])  # noqa: B023
        yardstick(lambda: clock.step(cost, seen))  # noqa: B023
        counts.append(len(seen) / timing.PAIRS - timing.WARMUP)
    assert counts[0] == timing.MOST
    assert timing.FEWEST < counts[1] < timing.MOST
    assert counts[2] == timing.FEWEST
