"""Observers: identity modules that record what a tensor looked like at every part of the trajectory.

One observer per file. A new one is a new file here with a subclass of `Observer` that sets `kind`; nothing else
needs to change for `observer_types` to list it.
"""

from __future__ import annotations

import importlib
import pkgutil

from qdiff_fx.observers.base import Observer, merge
from qdiff_fx.observers.minmax import MinMaxObserver
from qdiff_fx.observers.ranges import (
    choose_range,
    minmax_range,
    moving_average_range,
    mse_range,
    percentile_range,
)
from qdiff_fx.observers.statistics import Statistics, merge_statistics
from qdiff_fx.observers.timestep import TimestepObserver

__all__ = [
    "MinMaxObserver",
    "Observer",
    "Statistics",
    "TimestepObserver",
    "choose_range",
    "merge",
    "merge_statistics",
    "minmax_range",
    "moving_average_range",
    "mse_range",
    "observer_types",
    "percentile_range",
]


def observer_types() -> dict[str, type[Observer]]:
    """Every observer with a file in this folder, by its `kind`."""
    modules = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {cls.kind: cls for cls in classes if issubclass(cls, Observer) and cls.kind}
