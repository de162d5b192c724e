"""Allocation under a latency: what the layers' times add up to is corrected by the whole network's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qdiff_fx.errors import ConfigError
from qdiff_fx.tuning.allocate import Budget, Choices, Menu, allocate, predicted_sqnr_db
from qdiff_fx.tuning.choice import Choice

ROUNDS = 6
"""How often the program is solved, and the network it gives lowered and timed."""


def allocate_measured(
    menu: Menu, budget: Budget, *, bytes_besides: int, step: Callable[[Choices], float]
) -> tuple[Choices, float]:
    """The best choices whose network was measured to meet the budget, and the seconds it took.

    Layers by themselves know nothing of what neighbours share. So the sum of their times is only a scale: the program
    is solved for a bound on the sum, the network it gives is timed, and the bound is halved in between those that
    were kept and those that were not. The network with every unit at its most bits starts it, and takes part.

    Args:
        step: measures seconds of a step with some choices.

    Raises:
        ConfigError: no network that was tried meets the budget.
    """
    assert budget.seconds is not None
    tried = _Tried(menu, budget, bytes_besides, step)
    most_bits = {path: max(each for each in options if not each.wide) for path, options in menu.items()}
    seconds = tried(most_bits)
    lowest = sum(min(option.seconds for option in options.values()) for options in menu.values())
    # Enough for the sum, wherever the rest of the step puts it.
    bound = max(lowest, budget.seconds - (seconds - _seconds(menu, most_bits)))
    met, missed = lowest, None
    for _ in range(ROUNDS):
        choices = allocate(menu, replace(budget, seconds=bound * (1 + 1e-9)), bytes_besides=bytes_besides)
        seconds = tried(choices)
        if seconds <= budget.seconds:
            met = bound
        else:
            missed = bound
        if missed is None:
            bound = bound + (budget.seconds - seconds)
        elif bound <= lowest:
            break
        else:
            bound = (met + missed) / 2
    return tried.best()


class _Tried:
    """Times networks, and keeps the best that met the budget."""

    def __init__(self, menu: Menu, budget: Budget, bytes_besides: int, step: Callable[[Choices], float]):
        self._menu, self._budget, self._besides, self._step = menu, budget, bytes_besides, step
        self._best: tuple[float, Choices, float] | None = None
        self._seconds: dict[tuple[Choice, ...], float] = {}

    def __call__(self, choices: Choices) -> float:
        key = tuple(choices[path] for path in self._menu)
        if key not in self._seconds:
            self._seconds[key] = self._try(choices)
        return self._seconds[key]

    def _try(self, choices: Choices) -> float:
        limit = self._budget.seconds
        assert limit is not None
        seconds, sqnr_db = self._step(choices), predicted_sqnr_db(self._menu, choices)
        size = self._besides + sum(self._menu[path][choice].bytes for path, choice in choices.items())
        fits = self._budget.bytes is None or size <= self._budget.bytes
        if not fits or seconds > limit or (self._best and sqnr_db <= self._best[0]):
            return seconds
        # The best of many that met a limit is likely to have been lucky: it has to meet it twice on the average.
        seconds = (seconds + self._step(choices)) / 2
        if seconds <= limit:
            self._best = (sqnr_db, choices, seconds)
        return seconds

    def best(self) -> tuple[Choices, float]:
        assert self._budget.seconds is not None
        if self._best is None:
            raise ConfigError(
                f"{self._budget.seconds * 1e3:.2f} ms cannot be reached: "
                f"the fastest tried takes {min(self._seconds.values()) * 1e3:.2f} ms",
                where="target latency",
                fix="Raise the target, or lower the batch size",
            )
        _, choices, seconds = self._best
        return choices, seconds


def _seconds(menu: Menu, choices: Choices) -> float:
    return sum(menu[path][choice].seconds for path, choice in choices.items())
