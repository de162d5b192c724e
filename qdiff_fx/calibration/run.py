"""Show recorded batches to a prepared network, so that its observers see the whole trajectory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sized

import torch
from torch import nn

from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.kept import KeptStatistics, digest_of
from qdiff_fx.calibration.nested import flatten
from qdiff_fx.calibration.schedule import schedule_of, settle_schedule, timesteps_of
from qdiff_fx.errors import CalibrationError, QDiffError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.quant.timestep_bins import TimestepBins
from qdiff_fx.signature.roles import sample_argument, timestep_of_call


def calibrate(
    prepared: nn.Module,
    batches: Iterable[Batch],
    *,
    resume_dir: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> None:
    """Run `prepared(**batch)` on every batch, without gradients. Calling it again adds to what was seen.

    Args:
        prepared: a network with observers inside.
        batches: mappings of its forward arguments; `CalibrationData`, or any iterable. Where timesteps are none of a
            training schedule (log σ, a time in [0, 1]), their range is found in these, see `settle_schedule`.
        resume_dir: keep there what observers have seen, from time to time and in the end; a run that was killed goes on
            from it, to the same result. Batches then have to be a sequence.
        progress: show a bar, or report to this.
    Raises:
        ArtifactError: `resume_dir` belongs to another network or other batches, or cannot be written.
        CalibrationError: there are no batches, or no observers; an input is empty or holds NaN or infinity; a timestep
            lies outside the schedule. The message names the batch and the argument.
        InputError: the prepared network refuses a batch.
    """
    if schedule_of(prepared) is None and not isinstance(prepared, PreparedUNet):
        raise CalibrationError(
            "it has no observers, so nothing would be recorded",
            where=type(prepared).__name__,
            fix="Calibrate what prepare_qdiff returned",
        )
    kept = KeptStatistics(prepared, "" if resume_dir is None else digest_of(batches), resume_dir)
    batches = settle_schedule(prepared, batches)
    index = -1
    with phase(progress, "calibrating", len(batches) if isinstance(batches, Sized) else None, "batch") as calibrating:
        calibrating.skip(kept.seen)
        for index, batch in enumerate(batches):
            if index < kept.seen:
                continue
            check_batch(index, batch, schedule_of(prepared), prepared)
            try:
                with torch.no_grad():
                    prepared(**batch)
            except QDiffError as error:
                error.add_note(f"This happened in calibration batch {index}.")
                raise
            kept.saw(index + 1)
            calibrating.advance()
    if index < 0:
        raise CalibrationError(
            "there are no batches", where="calibrate", fix="Record some with collect_calibration_data"
        )
    kept.finish(index + 1)


def check_batch(index: int, batch: Batch, schedule: TimestepBins | None, prepared: nn.Module) -> None:
    """Raises CalibrationError for a batch that is no mapping, is not finite, or has a timestep outside the schedule."""
    if not isinstance(batch, Mapping):
        raise CalibrationError(
            f"it is a {type(batch).__name__}",
            where=f"batch {index}",
            fix='A batch maps forward arguments by name: {"sample": x_t, "timestep": t, ...}',
        )
    for name, tensor in flatten(batch).items():
        if not tensor.numel() and name == sample_argument(batch):
            raise CalibrationError("it holds no samples", where=f"batch {index}, argument {name!r}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CalibrationError("it holds NaN or infinity", where=f"batch {index}, argument {name!r}")
    timesteps = torch.tensor(timesteps_of(prepared, batch), dtype=torch.float64)
    outside = None if schedule is None else schedule.outside(timesteps)
    if outside is not None:
        raise CalibrationError(
            f"timestep {outside:g} is outside {schedule}",
            where=f"batch {index}, argument {timestep_of_call(prepared, batch)!r}",
            fix="Set num_train_timesteps in the configuration to the length of the schedule it comes from, or "
            "timestep_range to what timesteps lie in",
        )
