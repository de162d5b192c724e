"""The allocation, against every combination there is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import ConfigError
from qdiff_fx.tuning.allocate import Budget, Option, allocate, predicted_sqnr_db
from qdiff_fx.tuning.choice import FLOAT, Choice
from qdiff_fx.tuning.measured import allocate_measured

W4, W8 = Choice(4), Choice(8)
noises = st.floats(1e-6, 1.0)


def menu_of(rows):
    """Rows of (noise at 2, at 4, at 8 bits, number of weights)."""
    return {
        f"layer{i}": {
            Choice(bits): Option((noise,), count * bits, count * bits / 1e3)
            for bits, noise in zip((2, 4, 8), sorted(row[:3], reverse=True), strict=True)
        }
        for i, row in enumerate(rows)
        for count in (row[3],)
    }


def every_choice(menu):
    for bits in itertools.product(map(Choice, (2, 4, 8)), repeat=len(menu)):
        yield dict(zip(menu, bits, strict=True))


def size(menu, choices):
    return sum(menu[path][choice].bytes for path, choice in choices.items())


@examples(30)
@given(st.lists(st.tuples(noises, noises, noises, st.integers(1, 9)), min_size=1, max_size=4), st.floats(0, 1))
def test_nothing_within_the_budget_is_better(rows, fraction):
    menu = menu_of(rows)
    smallest, largest = (sum(f(o.bytes for o in options.values()) for options in menu.values()) for f in (min, max))
    budget = Budget(bytes=int(smallest + fraction * (largest - smallest)) + 7)
    found = allocate(menu, budget, bytes_besides=7)
    best = max(predicted_sqnr_db(menu, each) for each in every_choice(menu) if size(menu, each) + 7 <= budget.bytes)
    assert size(menu, found) + 7 <= budget.bytes
    assert predicted_sqnr_db(menu, found) == pytest.approx(best, abs=1e-2)


def test_no_timestep_is_sacrificed_for_a_loud_one():
    """Noise counts relative to what is left at its own timestep: the mean of decibels, not of powers."""
    loud = {W4: Option((0.3, 1e-5), 4), W8: Option((0.2, 1e-5), 8)}
    quiet = {W4: Option((1e-3, 1e-2), 4), W8: Option((1e-3, 1e-4), 8)}
    found = allocate({"loud": loud, "quiet": quiet}, Budget(bytes=12))
    assert found == {"loud": W4, "quiet": W8}


def test_both_budgets_hold():
    menu = {
        "a": {FLOAT: Option((0.0,), 40, 1.0), W8: Option((0.1,), 10, 0.2)},
        "b": {FLOAT: Option((0.0,), 40, 0.3), W8: Option((0.1,), 10, 0.2)},
    }
    assert allocate(menu, Budget(bytes=60, seconds=0.6)) == {"a": W8, "b": FLOAT}
    with pytest.raises(ConfigError, match="together"):
        allocate({"a": {FLOAT: Option((0.0,), 40, 0.1), W8: Option((0.1,), 10, 1.0)}}, Budget(bytes=20, seconds=0.5))


def test_what_cannot_be_reached_names_what_can():
    menu = menu_of([(0.1, 0.01, 0.001, 1000)])
    with pytest.raises(ConfigError, match="the smallest is 2,500 bytes, 500 of them besides the weights"):
        allocate(menu, Budget(bytes=2000), bytes_besides=500)
    with pytest.raises(ConfigError, match="the fastest is 2500.00 ms"):
        allocate(menu, Budget(seconds=1.0), seconds_besides=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to aim at"),
        ({"bytes": 0}, "not positive"),
        ({"ratio": float("nan")}, "not positive"),
        ({"seconds": 1.0, "ratio": 1.0}, "both given"),
    ],
)
def test_budgets_that_make_no_sense(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Budget(**arguments)


def test_a_share_of_a_latency_becomes_seconds_where_those_are_known():
    assert Budget(ratio=0.5).at(4.0) == Budget(seconds=2.0)
    assert Budget(bytes=10, ratio=1.0).at(4.0) == Budget(bytes=10, seconds=4.0)
    assert Budget(seconds=3.0).at(4.0) == Budget(seconds=3.0)
    assert [each.times for each in (Budget(1), Budget(seconds=1), Budget(ratio=1))] == [False, True, True]


def test_a_latency_is_met_by_what_was_measured_not_by_what_was_added_up():
    """Two layers that are fast alone and slow side by side: the sum says 2 s, the network takes 3."""
    menu = {name: {FLOAT: Option((0.0,), 1, 1.0), W8: Option((0.1,), 1, 0.5)} for name in "ab"}

    def step(choices):
        floats = sum(choice == FLOAT for choice in choices.values())
        return {0: 1.0, 1: 1.5, 2: 3.0}[floats]

    choices, seconds = allocate_measured(menu, Budget(seconds=2.0), bytes_besides=0, step=step)
    assert seconds == 1.5
    assert sorted(choices.values()) == [FLOAT, W8]


def test_a_network_of_the_most_bits_takes_part():
    """Leaving a layer in float looks cheaper by itself, and is not: only the untouched network meets its own time."""
    menu = {name: {FLOAT: Option((0.0,), 1, 0.4), W8: Option((0.1,), 1, 0.5)} for name in "ab"}

    def step(choices):
        return 1.0 + 0.1 * sum(choice == FLOAT for choice in choices.values())

    choices, seconds = allocate_measured(menu, Budget(seconds=1.0), bytes_besides=0, step=step)
    assert (choices, seconds) == ({"a": W8, "b": W8}, 1.0)
    with pytest.raises(ConfigError, match=r"900.00 ms cannot be reached: the fastest tried takes 1000.00 ms"):
        allocate_measured(menu, Budget(seconds=0.9), bytes_besides=0, step=step)
    # But not where it is too large.
    big = {name: {FLOAT: Option((0.0,), 1, 0.4), W8: Option((0.1,), 9, 0.5)} for name in "ab"}
    with pytest.raises(ConfigError, match="cannot be reached"):
        allocate_measured(big, Budget(bytes=10, seconds=1.0), bytes_besides=0, step=step)


def test_a_network_that_met_the_target_by_luck_is_not_taken():
    """What is slowest is timed too fast the first time."""
    menu = {name: {W4: Option((0.2,), 1, 0.3), W8: Option((0.1,), 1, 0.5)} for name in "ab"}
    times = {0: [0.99, 1.03], 1: [0.95, 0.95], 2: [0.9, 0.9]}

    def step(choices):
        return times[sum(choice == W4 for choice in choices.values())].pop(0)

    choices, seconds = allocate_measured(menu, Budget(seconds=1.0), bytes_besides=0, step=step)
    assert sorted(choices.values()) == [W4, W8]
    assert seconds == 0.95
