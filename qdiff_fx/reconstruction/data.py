"""Calibration batches as one table of samples, checked against what the network was calibrated on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.run import check_batch
from qdiff_fx.calibration.schedule import schedule_of
from qdiff_fx.errors import CalibrationError, QDiffError
from qdiff_fx.ir.facts import is_timestep
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.observers import Observer


@dataclass(frozen=True)
class Samples:
    """N samples.

    Attributes:
        inputs: the network's inputs by placeholder, [N, ...].
        by_timestep: the N numbers of the samples, sorted by timestep.
    """

    inputs: dict[str, Tensor]
    by_timestep: Tensor

    def __len__(self) -> int:
        return len(self.by_timestep)

    def evenly(self, count: int) -> Tensor:
        """The numbers of `count` samples, or of all where there are fewer, spread evenly over the timesteps."""
        count = min(count, len(self))
        return self.by_timestep[(torch.arange(count, dtype=torch.float64) * (len(self) / count)).long()]

    def only(self, rows: Tensor) -> Samples:
        """Some of the samples."""
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        position = torch.full((len(self),), -1)
        position[rows] = torch.arange(len(rows))
        kept = position[self.by_timestep]
        return Samples(inputs, kept[kept >= 0])


def gather(prepared: PreparedUNet, data: Iterable[Batch], batch_size: int) -> Samples:
    """Every sample of the data.

    Raises:
        CalibrationError: fewer samples than a batch; NaN or infinity; a part of the schedule that calibration saw and
            the data miss.
        InputError: a batch of another network.
    """
    placeholders = [node for node in prepared.graph_module.graph.nodes if node.op == "placeholder"]
    names = [node.name for node in placeholders]
    rows: list[list[Tensor]] = []
    for index, batch in enumerate(data):
        check_batch(index, batch, schedule_of(prepared), prepared)
        try:
            rows.append(prepared.flatten_inputs((), batch))
            if rows[-1][0].shape[1:] != rows[0][0].shape[1:]:
                raise CalibrationError("its samples have another size than the first batch's", where="reconstruct")
        except QDiffError as error:
            error.add_note(f"This happened in reconstruction batch {index}.")
            raise
    inputs = {name: torch.cat(column) for name, column in zip(names, zip(*rows, strict=True))}
    count = len(next(iter(inputs.values()))) if inputs else 0
    if count < batch_size:
        raise CalibrationError(
            f"there are {count} samples, fewer than one batch of {batch_size}",
            where="reconstruct",
            fix="Record more calibration data, or lower batch_size",
        )
    timestep = next((node.name for node in placeholders if is_timestep(node)), None)
    order = torch.arange(count) if timestep is None else inputs[timestep].argsort(stable=True)
    if timestep is not None:
        _check_timesteps(prepared, inputs[timestep])
    return Samples(inputs, order)


def _check_timesteps(prepared: PreparedUNet, timesteps: Tensor) -> None:
    """Raises CalibrationError where the data leave out timesteps that the observers saw."""
    observers = [module for module in prepared.modules() if isinstance(module, Observer)]
    if not observers:
        return
    schedule = observers[0].schedule
    given = set(schedule.bin_of(timesteps).tolist())
    seen = torch.stack([observer.count > 0 for observer in observers]).any(0).nonzero().flatten().tolist()
    missing = sorted(set(seen) - given)
    if missing:
        first, last = (schedule.ends[0] + edge * schedule.width for edge in (missing[0], missing[0] + 1))
        raise CalibrationError(
            f"no sample has a timestep in [{first:g}, {last:g}), where calibration saw some "
            f"({len(missing)} of {len(seen)} parts of the schedule are missing)",
            where="reconstruct",
            fix="Give the data that the network was calibrated on",
        )
