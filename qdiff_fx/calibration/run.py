"""Show recorded batches to a prepared network, so that its observers see the whole trajectory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from tqdm import tqdm

from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.nested import flatten
from qdiff_fx.errors import CalibrationError, QDiffError
from qdiff_fx.observers import Observer
from qdiff_fx.signature.roles import timestep_of_call


def calibrate(prepared: nn.Module, batches: Iterable[Batch], *, progress: bool = True) -> None:
    """Run `prepared(**batch)` on every batch, without gradients. Calling it again adds to what was seen.

    Args:
        prepared: a network with observers inside.
        batches: mappings of its forward arguments; `CalibrationData`, or any iterable.
    Raises:
        CalibrationError: there are no batches; an input holds NaN or infinity; a timestep lies outside the schedule.
            The message names the batch and the argument.
        InputError: the prepared network refuses a batch.
    """
    schedule = schedule_length(prepared)
    index = -1
    for index, batch in enumerate(tqdm(batches, desc="calibrating", unit="batch", disable=not progress)):
        check_batch(index, batch, schedule, prepared)
        try:
            with torch.no_grad():
                prepared(**batch)
        except QDiffError as error:
            error.add_note(f"This happened in calibration batch {index}.")
            raise
    if index < 0:
        raise CalibrationError(
            "there are no batches", where="calibrate", fix="Record some with collect_calibration_data"
        )


def schedule_length(prepared: nn.Module) -> float:
    """The schedule the observers were made for."""
    lengths = [module.num_train_timesteps for module in prepared.modules() if isinstance(module, Observer)]
    return lengths[0] if lengths else math.inf


def check_batch(index: int, batch: Batch, schedule: float, prepared: nn.Module) -> None:
    """Raises CalibrationError for a batch that is no mapping, is not finite, or has a timestep outside the schedule."""
    if not isinstance(batch, Mapping):
        raise CalibrationError(
            f"it is a {type(batch).__name__}",
            where=f"batch {index}",
            fix='A batch maps forward arguments by name: {"sample": x_t, "timestep": t, ...}',
        )
    for name, tensor in flatten(batch, strict=False).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CalibrationError("it holds NaN or infinity", where=f"batch {index}, argument {name!r}")
    argument = timestep_of_call(prepared, batch)
    given = None if argument is None else batch.get(argument)
    for timestep in [] if given is None else torch.as_tensor(given).flatten().tolist():
        if not 0 <= timestep < schedule:
            raise CalibrationError(
                f"timestep {timestep} is outside the schedule [0, {schedule})",
                where=f"batch {index}, argument {argument!r}",
                fix="Set num_train_timesteps in the configuration to the length of the schedule it comes from",
            )
