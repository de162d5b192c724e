"""Calibration by several processes: each shows its part of the batches, and all know what was seen."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from qdiff_fx.calibration import CalibrationData, calibrate
from qdiff_fx.calibration.schedule import settle_schedule
from qdiff_fx.distributed import Workers
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.observers import Observer
from qdiff_fx.progress import Progress


def calibrate_together(
    prepared: PreparedUNet,
    data: CalibrationData,
    workers: Workers,
    *,
    resume_dir: str | os.PathLike[str] | None,
    progress: bool | Progress,
) -> None:
    """As `calibrate`, of a network that has seen nothing yet; exactly what one process would have seen.

    Args:
        prepared: the same in every process.
        data: all batches, in every process.
        resume_dir: of all of them; each keeps its own.
    """
    if workers.count == 1:
        calibrate(prepared, data, resume_dir=resume_dir, progress=progress)
        return
    settle_schedule(prepared, data)
    own = workers.share(range(len(data)))
    folder = None if resume_dir is None else Path(resume_dir) / f"process-{workers.rank}"
    with workers.together():
        if own:
            calibrate(prepared, data.at(own), resume_dir=folder, progress=progress)
    _merge(prepared, workers)


def _merge(prepared: PreparedUNet, workers: Workers) -> None:
    observers = {name: each for name, each in prepared.named_modules() if isinstance(each, Observer)}
    tensors = {f"{name}.{key}": seen for name, each in observers.items() for key, seen in each.named_buffers()}
    found = workers.gather(None, tensors)
    for name, observer in observers.items():
        others = [copy.deepcopy(observer) for _ in found]
        for other, (_, received) in zip(others, found, strict=True):
            for key, buffer in other.named_buffers():
                buffer.copy_(received[f"{name}.{key}"])
        total = others[0]
        for other in others[1:]:
            total.merge(other)
        for key, buffer in observer.named_buffers():
            buffer.copy_(total.get_buffer(key))
