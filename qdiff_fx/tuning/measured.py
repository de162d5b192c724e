"""Allocation under a latency: what the layers' times add up to is corrected by the whole network's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qdiff_fx.errors import ConfigError
from qdiff_fx.tuning.allocate import Budget, Choices, Menu, allocate, predicted_sqnr_db

ROUNDS = 6
"""How often the whole network is lowered and timed."""


def allocate_measured(
    menu: Menu, budget: Budget, *, bytes_besides: int, step: Callable[[Choices], float]
) -> tuple[Choices, float]:
    """The best choices whose network was measured to meet the budget, and the seconds it took.

    Layers by themselves know nothing of what neighbours share. So the sum of their times is only a scale: the program
    is solved for a bound on the sum, the network it gives is timed, and the bound is halved in between those that
    were kept and those that were not.

    Args:
        step: measures seconds of a step with some choices.

    Raises:
        ConfigError: no network that was tried meets the budget.
    """
    assert budget.seconds is not None
    fastest = sum(min(option.seconds for option in options.values()) for options in menu.values())
    first: Choices = {path: max(options) for path, options in menu.items()}
    # Enough for the sum, wherever the rest of the step puts it.
    bound = max(fastest, budget.seconds - (step(first) - _seconds(menu, first)))
    met, missed = fastest, None
    best: tuple[float, Choices, float] | None = None
    shortest = float("inf")
    for _ in range(ROUNDS):
        choices = allocate(menu, replace(budget, seconds=bound * (1 + 1e-9)), bytes_besides=bytes_besides)
        seconds = step(choices)
        shortest = min(shortest, seconds)
        if seconds <= budget.seconds:
            met = bound
            sqnr = predicted_sqnr_db(menu, choices)
            best = (sqnr, choices, seconds) if best is None or sqnr > best[0] else best
        else:
            missed = bound
        if missed is None:
            bound = bound + (budget.seconds - seconds)
        elif bound <= fastest:
            break
        else:
            bound = (met + missed) / 2
    if best is None:
        raise ConfigError(
            f"{budget.seconds * 1e3:.2f} ms cannot be reached: the fastest tried takes {shortest * 1e3:.2f} ms",
            where="target latency",
            fix="Raise the target, or lower the batch size",
        )
    return best[1], best[2]


def _seconds(menu: Menu, choices: Choices) -> float:
    return sum(menu[path][choice].seconds for path, choice in choices.items())
