"""What the timesteps of a network are: steps of a training schedule, or something else, which batches then show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from qdiff_fx.calibration.data import Batch
from qdiff_fx.observers import Observer
from qdiff_fx.quant.timestep_bins import Span, TimestepBins
from qdiff_fx.signature import CallSignature
from qdiff_fx.signature.roles import timestep_of_call

EARLY = 25
"""A timestep of a training schedule that lies past its first 25th says that it is one: no log σ is as large."""


def schedule_of(prepared: nn.Module) -> TimestepBins | None:
    """The schedule its observers count by; None without observers."""
    return next((module.schedule for module in prepared.modules() if isinstance(module, Observer)), None)


def settle_schedule(prepared: nn.Module, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Find out what range the timesteps lie in, where they are none of the training schedule, and count by its parts.

    They are none if there are fractions among them, and some lie outside it or all of them at its very end, in [0, 1];
    or if the batches know that they come from a schedule of another length. Only the first calibration looks. Batches
    that come one by one are held in memory until that is clear: up to the first later timestep, or all of them.

    Returns:
        The same batches.
    """
    observers = [module for module in prepared.modules() if isinstance(module, Observer)]
    if not observers or observers[0].schedule.span is not None or not all(each.empty for each in observers):
        return batches
    configured, length = observers[0].schedule, recorded_length(batches)
    schedule = configured if length is None else replace(configured, num_train_timesteps=length)
    found: Span | None = None if schedule == configured else schedule.ends
    coming, seen, timesteps = iter(batches), list[Batch](), list[float]()
    for batch in coming:
        seen.append(batch)
        given = timesteps_of(prepared, batch)
        timesteps += given
        if not given or not all(map(math.isfinite, given)):
            break
        if _shows_schedule(given, schedule) and not _outside(timesteps, schedule):
            break
    else:
        found = _span_of(timesteps, schedule) or found
    for observer in observers if found else ():
        observer.schedule = replace(observer.schedule, span=found)
    return batches if not isinstance(batches, Iterator) else chain(seen, coming)


def recorded_length(batches: object) -> int | None:
    """The length of the training schedule that recorded batches come from, where they know it."""
    length = getattr(batches, "metadata", {}).get("num_train_timesteps")
    return length if isinstance(length, int) else None


def timesteps_of(network: nn.Module, batch: Any) -> list[float]:
    """The timesteps of a batch, as the network reads them; none where it has none, or is no batch at all."""
    argument = timestep_of_call(network, batch) if isinstance(batch, Mapping) else None
    given = None if argument is None else batch.get(argument)
    if given is None:
        return []
    timesteps, signature = torch.as_tensor(given), getattr(network, "signature", None)
    read = signature.timestep if isinstance(signature, CallSignature) else None
    if read is not None and read.dtype.is_floating_point:
        timesteps = timesteps.to(read.dtype)
    found: list[float] = timesteps.flatten().tolist()
    return found


def is_settled(schedule: TimestepBins, timesteps: Iterable[float]) -> bool:
    """Whether these first timesteps of all tell that `settle_schedule` will leave the schedule as it is."""
    given = list(timesteps)
    return schedule.span is not None or (_shows_schedule(given, schedule) and not _outside(given, schedule))


def _shows_schedule(timesteps: Iterable[float], schedule: TimestepBins) -> bool:
    length = schedule.num_train_timesteps
    return any(max(schedule.width, length / EARLY) <= timestep <= length for timestep in timesteps)


def _outside(timesteps: Iterable[float], schedule: TimestepBins) -> bool:
    return any(not 0 <= timestep <= schedule.num_train_timesteps for timestep in timesteps)


def _span_of(timesteps: list[float], schedule: TimestepBins) -> Span | None:
    smallest, largest = min(timesteps, default=0.0), max(timesteps, default=0.0)
    fractions, outside = any(timestep % 1 for timestep in timesteps), _outside(timesteps, schedule)
    if not fractions or (largest > 1 and not outside):
        return None
    if smallest == largest:  # a single step: up to where noise ends, or begins
        return (min(smallest, 0.0), max(largest, 0.0)) if outside else None
    return smallest, largest
