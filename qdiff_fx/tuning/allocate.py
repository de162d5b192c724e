"""Which choice each unit gets: the least noise that a budget buys, as an integer program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from qdiff_fx.errors import ConfigError
from qdiff_fx.tuning.choice import Choice

ROUNDS = 10
GAP = 1e-4  # relative; the noise model is far less exact
TIME_LIMIT = 60.0  # seconds of the solver


@dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Attributes:
        bytes: size of the saved folder.
        seconds: of one step on this machine.
        ratio: the same as a share of what a step takes before tuning; `at` makes seconds of it.
    """

    bytes: int | None = None
    seconds: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            raise ConfigError("there is nothing to aim at", where="budget", fix="Give a target size, latency or both")
        if {"seconds", "ratio"} <= set(given):
            raise ConfigError("a latency and a share of one are both given", where="budget", fix="Give one of them")
        for name, value in given.items():
            if not value > 0:
                raise ConfigError(f"{value} is not positive", where=f"target {name}")

    @property
    def times(self) -> bool:
        """Whether time is limited."""
        return self.seconds is not None or self.ratio is not None

    def at(self, seconds: float) -> Budget:
        """The budget in seconds, where a step takes so many before tuning."""
        return self if self.ratio is None else replace(self, seconds=self.ratio * seconds, ratio=None)


@dataclass(frozen=True)
class Option:
    """One choice for one unit.

    Attributes:
        noise: its relative noise power on each probed batch.
        bytes, seconds: what it costs.
    """

    noise: tuple[float, ...]
    bytes: int
    seconds: float = 0.0


Menu = Mapping[str, Mapping[Choice, Option]]
"""path → choice → option."""
Choices = Mapping[str, Choice]
"""path → what is chosen for the unit."""


def allocate(menu: Menu, budget: Budget, *, bytes_besides: int = 0, seconds_besides: float = 0.0) -> dict[str, Choice]:
    """The choice for each path that maximises the predicted mean SQNR of the prediction within the budget.

    Minimises ``Σ_t log N_t``, ``N_t = Σ_units noise_t``. The logarithm is concave, so its tangent at the last
    solution lies above it: every round solves the integer program ``min Σ_t N_t / N_t(last)``, and cannot end worse
    than it started.

    Args:
        bytes_besides, seconds_besides: what the network costs apart from the units.

    Raises:
        ConfigError: nothing fits the budget; the message names the smallest that does.
    """
    check_reachable(menu, budget, bytes_besides, seconds_besides)
    program = _Program(menu, budget, bytes_besides, seconds_besides)
    choices = program.solve(1.0 / np.maximum(program.noise.mean(0), np.finfo(float).tiny))
    for _ in range(ROUNDS):
        total = total_noise(menu, choices)
        better = program.solve(1.0 / np.maximum(total, np.finfo(float).tiny))
        if _log_noise(menu, better) >= _log_noise(menu, choices):
            return choices
        choices = better
    return choices


def total_noise(menu: Menu, choices: Choices) -> np.ndarray:
    """Relative noise power of the whole network on each batch, (T,): the sum over its units."""
    total: np.ndarray = np.sum([menu[path][choice].noise for path, choice in choices.items()], axis=0)
    return total


def predicted_sqnr_db(menu: Menu, choices: Choices) -> float:
    """Mean over the batches of the SQNR that the additive model gives, in dB; infinite without any noise."""
    with np.errstate(divide="ignore"):
        return float(np.mean(-10 * np.log10(total_noise(menu, choices))))


def _log_noise(menu: Menu, choices: Choices) -> float:
    return -predicted_sqnr_db(menu, choices)


class _Program:
    """Rows of the integer program: one binary variable per unit and choice."""

    def __init__(self, menu: Menu, budget: Budget, bytes_besides: int, seconds_besides: float):
        from scipy.optimize import LinearConstraint

        self.variables = [(path, choice) for path, options in menu.items() for choice in options]
        options = [menu[path][choice] for path, choice in self.variables]
        self.noise = np.array([option.noise for option in options])
        paths = list(menu)
        one_each = np.zeros((len(paths), len(self.variables)))
        for column, (path, _) in enumerate(self.variables):
            one_each[paths.index(path), column] = 1
        at_most = partial(LinearConstraint, lb=-np.inf)
        self.constraints = [LinearConstraint(one_each, 1, 1)]
        if budget.bytes is not None:
            sizes = np.array([option.bytes for option in options]) / budget.bytes
            self.constraints.append(at_most(sizes[None], ub=1 - bytes_besides / budget.bytes))
        if budget.seconds is not None:
            times = np.array([option.seconds for option in options]) / budget.seconds
            self.constraints.append(at_most(times[None], ub=1 - seconds_besides / budget.seconds))

    def solve(self, weights: np.ndarray) -> dict[str, Choice]:
        """The choices of least ``Σ weights · noise``."""
        from scipy.optimize import Bounds, milp

        costs = self.noise @ weights
        result = milp(
            costs / max(costs.max(), np.finfo(float).tiny),
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            constraints=self.constraints,
            options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT},
        )
        if result.x is None:
            raise ConfigError(
                f"no choice of bits meets the targets together ({result.message})",
                where="budget",
                fix="Raise one of the targets",
            )
        chosen = zip(self.variables, result.x > 0.5, strict=True)
        return {path: choice for (path, choice), taken in chosen if taken}


def check_reachable(menu: Menu, budget: Budget, bytes_besides: int = 0, seconds_besides: float = 0.0) -> None:
    """Raises ConfigError that names the smallest size, or the shortest time, where a target is below it."""
    smallest = bytes_besides + sum(min(option.bytes for option in options.values()) for options in menu.values())
    fastest = seconds_besides + sum(min(option.seconds for option in options.values()) for options in menu.values())
    if budget.bytes is not None and smallest > budget.bytes:
        raise ConfigError(
            f"{budget.bytes:,} bytes cannot be reached: the smallest is {smallest:,} bytes, "
            f"{bytes_besides:,} of them besides the weights",
            where="target size",
            fix="Raise the target, or allow fewer bits",
        )
    if budget.seconds is not None and fastest > budget.seconds:
        raise ConfigError(
            f"{budget.seconds * 1e3:.2f} ms cannot be reached: the fastest is {fastest * 1e3:.2f} ms",
            where="target latency",
            fix="Raise the target, or lower the batch size",
        )
