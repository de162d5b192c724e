"""Calibration by several processes: each shows its part of the batches, and all know what was seen."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff_fx.calibration import CalibrationData, calibrate
from qdiff_fx.calibration.schedule import settle_schedule
from qdiff_fx.distributed import Workers
from qdiff_fx.observers import Observer
from qdiff_fx.progress import Progress

SEEN = "seen bins"


def calibrate_together(
    prepared: nn.Module,
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
    # Neighbouring timesteps: then few bins are anything but empty, and the others need not be sent.
    own = workers.stretch(data.by_timestep())
    with adding_up(prepared, workers), workers.together():
        if own:
            calibrate(prepared, data.at(own), resume_dir=own_folder(resume_dir, workers), progress=progress)


def own_folder(folder: str | os.PathLike[str] | None, workers: Workers) -> Path | None:
    """Of this process, in one of all of them."""
    if folder is None or workers.count == 1:
        return None if folder is None else Path(folder)
    return Path(folder) / f"process-{workers.rank}"


@contextmanager
def adding_up(prepared: nn.Module, workers: Workers) -> Iterator[None]:
    """After the block the observers of every process know what those of all processes saw in it.

    Args:
        prepared: a network that has seen nothing yet, the same in every process.
    """
    if workers.count == 1:
        yield
        return
    parts = {name: _Parts(each) for name, each in prepared.named_modules() if isinstance(each, Observer)}
    yield
    found = workers.gather(None, {f"{name}/{key}": part for name, each in parts.items() for key, part in each.of_now()})
    for name, each in parts.items():
        each.take(name, [tensors for _, tensors in found])


class _Parts:
    """An observer taken apart into what it saw, and put together from what several saw.

    Args:
        observer: one that has seen nothing yet.
    """

    def __init__(self, observer: Observer):
        self.observer = observer
        # All bins are empty in the same way.
        self._blank = {
            key: buffer[:1].clone() if self._has_bins(buffer) else buffer.clone()
            for key, buffer in observer.named_buffers()
        }

    def of_now(self) -> list[tuple[str, Tensor]]:
        """The numbers of the bins that saw something, and these bins of every buffer that has any."""
        seen = self.observer.count.nonzero().flatten()
        buffers = self.observer.named_buffers()
        return [(SEEN, seen), *((key, each[seen] if self._has_bins(each) else each) for key, each in buffers)]

    def take(self, name: str, received: list[Mapping[str, Tensor]]) -> None:
        """Become what observers of all processes saw, by tensors "name/key"."""
        total = self._empty()
        for tensors in received:
            total.merge(self._filled({key: tensors[f"{name}/{key}"] for key in (SEEN, *self._blank)}))
        for key, buffer in self.observer.named_buffers():
            buffer.copy_(total.get_buffer(key))

    def _filled(self, parts: Mapping[str, Tensor]) -> Observer:
        observer = self._empty()
        for key, buffer in observer.named_buffers():
            if self._has_bins(buffer):
                buffer[parts[SEEN]] = parts[key]
            else:
                buffer.copy_(parts[key])
        return observer

    @torch.no_grad()
    def _empty(self) -> Observer:
        twin = copy.deepcopy(self.observer)
        for key, buffer in twin.named_buffers():
            buffer.copy_(self._blank[key])
        return twin

    def _has_bins(self, buffer: Tensor) -> bool:
        return buffer.dim() > 0 and buffer.shape[0] == self.observer.timestep_bins
