"""The ways to choose a range from what an observer saw: what users call them, and where their functions are."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from torch import Tensor

from qdiff_fx.errors import ConfigError

# A new method adds a line, or calls `register`. Each is imported when it is first asked for.
_PLACES = {
    "minmax": "qdiff_fx.observers.ranges:by_minmax",
    "moving_average": "qdiff_fx.observers.ranges:by_moving_average",
    "percentile": "qdiff_fx.observers.ranges:by_percentile",
    "mse": "qdiff_fx.observers.ranges:by_mse",
}


class RangeMethod(Protocol):
    """What is asked of every method: `(statistics, bits, per_timestep, symmetric) -> (lo, hi)`.

    lo and hi are float32, 0-d, or [T] with `per_timestep`. A method may ignore what it has no use for.
    """

    def __call__(self, stats: Any, bits: int, per_timestep: bool, symmetric: bool) -> tuple[Tensor, Tensor]: ...


def range_methods() -> tuple[str, ...]:
    """What can be passed as ``act_range``."""
    return tuple(_PLACES)


def register(name: str, place: str) -> None:
    """Make a method known under a name; networks that were saved with it load where it is registered.

    Args:
        name: what users pass as ``act_range``.
        place: ``"module.path:function"``, see `RangeMethod`.

    Raises:
        ConfigError: the name is taken by another function.
    """
    if _PLACES.setdefault(name, place) != place:
        raise ConfigError(f"the name is taken by {_PLACES[name]}", where=f"act_range={name!r}", fix="Choose another")


def range_method(name: str) -> RangeMethod:
    """The function behind a name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in _PLACES:
        raise ConfigError(
            f"unknown range method {name!r}", where="act_range", fix=f"Choose one of {list(range_methods())}"
        )
    module, _, function = _PLACES[name].partition(":")
    return cast(RangeMethod, getattr(importlib.import_module(module), function))
