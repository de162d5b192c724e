"""A watcher that keeps what a sampler feeds the network at every c-th step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdiff_fx.calibration.data import CalibrationData
from qdiff_fx.calibration.record import Record, as_record
from qdiff_fx.sampling.recorder import watching
from qdiff_fx.signature.roles import timestep_of_call


class TrajectoryRecorder:
    """Records the calls of one trajectory.

    Of a trajectory of S calls it keeps those whose distance from the last is a multiple of `every`: uniform over
    the whole trajectory, and the last step, where activation ranges change most, is always among them. S is what the
    schedule holds from the first call's timestep on: a pipeline that starts from an image skips what lies before. Where
    a pipeline makes fewer calls yet, the last one is kept besides.

    Args:
        unet: the network to watch.
        schedule: gives the timesteps; called during the first call, when the sampler has made them.
        every: c of the paper.
        on_record: called with all records so far after each of them, and the number there will be.
    Attributes:
        records: so far.
        timestep: the argument that holds it.
        current: the number of the record that the call in progress was kept as; None where it was not.
    """

    def __init__(
        self,
        unet: nn.Module,
        schedule: Callable[[], Tensor],
        every: int,
        on_record: Callable[[list[Record], int], None],
    ):
        self.unet, self.every = unet, every
        self.records: list[Record] = []
        self.timestep = ""
        self.current: int | None = None
        self._schedule, self._on_record = schedule, on_record
        self._calls, self._last = 0, 0
        self._latest: Record | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch the network inside the with block."""
        with watching(self.unet, before=self._see):
            yield
        if self._latest is not None:
            self._keep(self._latest)

    def _see(self, inputs: dict[str, Any]) -> None:
        name = timestep_of_call(self.unet, inputs)
        record = as_record(inputs, name)
        if not self._calls:
            self.timestep = name or ""
            self._last = self._calls_to_come(None if name is None else record.tensors[name]) - 1
        chosen = (self._last - self._calls) % self.every == 0
        self._calls += 1
        self.current = len(self.records) if chosen else None
        if chosen:
            self._keep(record)
        self._latest = None if chosen else self._kept(record)

    def _calls_to_come(self, timestep: Tensor | None) -> int:
        """Of a schedule that is entered at that timestep; all of it where it is not one of the schedule's."""
        schedule = torch.as_tensor(self._schedule()).flatten().double().cpu()
        entered = [] if timestep is None else (schedule == timestep.flatten()[0].double()).nonzero().flatten().tolist()
        return len(schedule) - (entered[0] if entered else 0)

    def _keep(self, record: Record) -> None:
        self.records.append(self._kept(record))
        self._latest = None
        self._on_record(self.records, self._last // self.every + 1)

    def _kept(self, record: Record) -> Record:
        """Copies of its tensors, or the previous step's where nothing changed: conditioning is stored once."""
        previous = self.records[-1].tensors if self.records else {}
        tensors = {name: _same_or_copy(previous.get(name), tensor) for name, tensor in record.tensors.items()}
        return Record(tensors, record.layout)


def _same_or_copy(previous: Tensor | None, tensor: Tensor) -> Tensor:
    if previous is not None and previous.dtype == tensor.dtype and torch.equal(previous, tensor):
        return previous
    return tensor.clone()


def recorded_bytes(records: list[Record], steps: int) -> int:
    """What `steps` records will take, judged by the first one or two: what the two share is shared by all."""
    first = CalibrationData(records[:1]).nbytes
    return first + (steps - 1) * (CalibrationData(records[:2]).nbytes - first)
