"""Recorded rows in the order and the portions in which they stream through a network.

A row is one sample at one timestep. A portion, a chunk, never mixes timestep bins, as one row of every table of scales
holds for a whole call, nor rows of different sizes. Which rows go together depends on the rows alone, not on the
batches they came in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from qdiff_fx.calibration.data import Batch
from qdiff_fx.calibration.run import check_batch
from qdiff_fx.calibration.schedule import schedule_of
from qdiff_fx.errors import CalibrationError, QDiffError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.quant.digest import digest
from qdiff_fx.signature.rows import has_batch, take_rows

CHUNK_ELEMENTS = 1 << 16
"""Of the images in a chunk: what lies between the layers is some hundred times as much."""
MOST_ROWS = 16


@dataclass(frozen=True)
class Chunk:
    """Some rows that go through the network together.

    Attributes:
        bin: their timestep bin; 0 where nothing depends on it.
        rows: their numbers among all rows that stream.
        inputs: the network's inputs by placeholder.
    """

    bin: int
    rows: range
    inputs: dict[str, Tensor]


class _Row(NamedTuple):
    bin: int
    kind: str
    inputs: list[Tensor]
    place: int


def chunks_of(prepared: PreparedUNet, batches: Iterable[Batch], *, where: str) -> list[Chunk]:
    """The rows of some batches, sorted by timestep bin, in chunks.

    Args:
        prepared: the network they are for.
        batches: mappings of its forward arguments.
        where: who asks, for errors.

    Raises:
        CalibrationError: an input is not finite, or a timestep is outside the schedule; the network takes one number of
            samples only, and the rows do not divide by it.
        InputError: the network refuses a batch.
    """
    kinds: dict[tuple[int, str], list[_Row]] = {}
    for row in _rows(prepared, batches, where):
        kinds.setdefault((row.bin, row.kind), []).append(row)
    by_bin = sorted(kinds, key=lambda key: key[0])  # kinds of one bin as they came
    rows = [row for key in by_bin for row in kinds[key]]
    names = [node.name for node in prepared.graph_module.graph.nodes if node.op == "placeholder"]
    return list(_chunks(prepared, names, rows))


def _rows(prepared: PreparedUNet, batches: Iterable[Batch], where: str) -> Iterator[_Row]:
    signature, qconfig = prepared.signature, prepared.qconfig
    position = next((i for i, spec in enumerate(signature.inputs) if spec.role == "timestep"), None)
    by_bin = position is not None and qconfig.act_granularity == "timestep"
    sample = signature.inputs.index(signature.sample)
    batched = has_batch(signature)
    for index, batch in enumerate(batches):
        check_batch(index, batch, schedule_of(prepared), prepared)
        try:
            tensors = prepared.flatten_inputs((), batch)
        except QDiffError as error:
            error.add_note(f"This happened in batch {index} given to {where}.")
            raise
        count = len(tensors[sample])
        bins = qconfig.schedule.rows_of(tensors[position], count) if by_bin and position is not None else None
        # What has no batch has to be the same for all rows of a chunk.
        shared = digest([each for each, many in zip(tensors, batched, strict=True) if not many])
        kind = f"{[(tuple(each.shape[1:]), each.dtype) for each in tensors]} {shared}"
        for row in range(count):
            yield _Row(0 if bins is None else int(bins[row]), kind, tensors, row)


def _chunks(prepared: PreparedUNet, names: list[str], rows: list[_Row]) -> Iterator[Chunk]:
    sample = prepared.signature.inputs.index(prepared.signature.sample)
    start = 0
    for _, group in groupby(rows, key=lambda row: (row.bin, row.kind)):
        alike = list(group)
        fixed = prepared.signature.sample.dims[0]
        if isinstance(fixed, int):
            most = _checked(fixed, len(alike))
        else:
            most = max(1, min(MOST_ROWS, CHUNK_ELEMENTS // max(1, alike[0].inputs[sample][0].numel())))
        count = math.ceil(len(alike) / most)  # as equal as can be
        ends = [len(alike) * (index + 1) // count for index in range(count)]
        for first, last in zip([0, *ends], ends, strict=False):
            inputs = _joined(prepared, alike[first:last])
            yield Chunk(alike[0].bin, range(start + first, start + last), dict(zip(names, inputs, strict=True)))
        start += len(alike)


def _checked(batch: int, rows: int) -> int:
    if rows % batch:
        raise CalibrationError(
            f"the network takes {batch} samples at a time, and there are {rows} of one part of the schedule",
            where="batches",
            fix=f"Show batches of {batch} samples at one timestep, or prepare the network with its batch open",
        )
    return batch


def _joined(prepared: PreparedUNet, rows: list[_Row]) -> list[Tensor]:
    parts = [take_rows(prepared.signature, row.inputs, torch.tensor([row.place])) for row in rows]
    batched = has_batch(prepared.signature)
    return [torch.cat(each) if many else each[0] for each, many in zip(zip(*parts, strict=True), batched, strict=True)]
