"""A watcher that keeps what a sampler feeds the network at every c-th step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from qdiff_fx.calibration.data import CalibrationData, as_record
from qdiff_fx.sampling.recorder import watching
from qdiff_fx.signature.roles import timestep_of_call


class TrajectoryRecorder:
    """Records the calls of one trajectory.

    Of a trajectory of S calls it keeps those whose distance from the last is a multiple of `every`: uniform over
    the whole trajectory, and the last step, where activation ranges change most, is always among them.

    Args:
        unet: the network to watch.
        count_steps: gives S; called during the first call, when the sampler has made its schedule.
        every: c of the paper.
        on_record: called with all records so far after each of them.
    """

    def __init__(
        self,
        unet: nn.Module,
        count_steps: Callable[[], int],
        every: int,
        on_record: Callable[[list[dict[str, Tensor]], int], None],
    ):
        self.unet, self.every = unet, every
        self.records: list[dict[str, Tensor]] = []
        self._count_steps, self._on_record = count_steps, on_record
        self._calls = 0

    def recording(self) -> AbstractContextManager[None]:
        """Watch the network inside the with block."""
        return watching(self.unet, before=self._see)

    def _see(self, inputs: dict[str, Any]) -> None:
        last = self._count_steps() - 1
        if (last - self._calls) % self.every == 0:
            record = as_record(inputs, timestep_of_call(self.unet, inputs))
            self.records.append({name: self._kept(name, tensor) for name, tensor in record.items()})
            self._on_record(self.records, last // self.every + 1)
        self._calls += 1

    def _kept(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of the tensor, or the previous step's one if nothing changed: conditioning is stored once."""
        previous = self.records[-1].get(name) if self.records else None
        if previous is not None and previous.dtype == tensor.dtype and torch.equal(previous, tensor):
            return previous
        return tensor.clone()


def recorded_bytes(records: list[dict[str, Tensor]], steps: int) -> int:
    """What `steps` records will take, judged by the first one or two: what the two share is shared by all."""
    first = CalibrationData(records[:1]).nbytes
    return first + (steps - 1) * (CalibrationData(records[:2]).nbytes - first)
