"""Which second moments a block's layers need, and which layers need the same one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from qdiff_fx.calibration.chunks import Chunk
from qdiff_fx.ir.annotations import require, value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import LayerPlan
from qdiff_fx.kernels.ops.int_gram import MOST_ROWS
from qdiff_fx.quant.parameters import ActivationParameters
from qdiff_fx.weight_rounding.second_moment import SecondMoment, Window, common_grid

aten = torch.ops.aten

PER_COLUMN = 2
"""Positions, pixels or tokens, that are looked at for every column of a weight; see docs/quality.md."""
LEAST_POSITIONS = 8192
MOST_COLUMNS, MOST_COLUMNS_OF_BYTES = 2304, 1152
"""Of a second moment, for weights of fewer bits and of eight: one of more takes long, and what its parts have in common
matters less than which rows are seen; see docs/quality.md."""


@dataclass(frozen=True)
class Job:
    """One second moment and the layers it serves: all that read the same codes through the same window.

    Attributes:
        columns: K, entries of one output channel of the layers' weights.
        window: None for linear layers.
        layers: in execution order.
        parts: of the input channels, each with a second moment of its own; mostly one.
    """

    columns: int
    window: Window | None
    layers: tuple[fx.Node, ...]
    parts: tuple[slice, ...]

    @property
    def per_channel(self) -> int:
        """Columns of one input channel."""
        return 1 if self.window is None else self.window.kernel[0] * self.window.kernel[1]


def jobs_of(layers: Iterable[fx.Node], cap: int) -> tuple[list[Job], list[tuple[fx.Node, str]]]:
    """The jobs of some layers of the observed graph, in execution order, and why layers have none.

    Args:
        cap: bytes of a Hessian. A larger one is had in parts, see `parts_of`; so is one of more columns than are worth
            their time.
    """
    found: dict[tuple[object, ...], Job] = {}
    refused = []
    for layer in layers:
        job = _job(layer)
        if isinstance(job, Job) and 4 * job.per_channel**2 > cap:
            job = f"the Hessian of one channel takes {4 * job.per_channel**2} bytes, the cap is {cap}"
        if isinstance(job, str):
            refused.append((layer, job))
            continue
        bits = require(layer, LayerPlan).info.weight_bits
        parts = parts_of(job.columns, job.per_channel, min(cap, 4 * most_columns(bits) ** 2))
        key = layer.args[0], job.columns, job.window, len(parts)
        known = found.get(key)
        found[key] = replace(job, layers=(*(known.layers if known else ()), layer), parts=parts)
    return list(found.values()), refused


def most_columns(bits: int) -> int:
    """Of a second moment for weights of so many bits."""
    return MOST_COLUMNS_OF_BYTES if bits >= 8 else MOST_COLUMNS


def parts_of(columns: int, per_channel: int, cap: int) -> tuple[slice, ...]:
    """The input channels in as few parts of nearly equal size as keep the Hessian of each under `cap` bytes."""
    channels = columns // per_channel
    most = max(1, math.isqrt(cap // 4) // per_channel)
    count = -(-channels // most)
    ends = [channels * (index + 1) // count for index in range(count)]
    return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))


def _job(layer: fx.Node) -> Job | str:
    """Of one layer alone."""
    weight = value(operand(layer, 1))
    if is_op(layer, aten.linear.default):
        return Job(weight.shape[1], None, (layer,), ())
    if not is_op(layer, aten.conv2d.default):
        return "only linear layers and 2-d convolutions have one"
    arguments = bound(layer)
    if arguments["groups"] != 1:
        return "the convolution is grouped"
    sizes = [_pair(arguments[name]) for name in ("stride", "padding", "dilation")]
    return Job(weight[0].numel(), Window(tuple(weight.shape[2:]), *sizes), (layer,), ())


def _pair(size: list[int]) -> tuple[int, ...]:
    return tuple(size) * 2 if len(size) == 1 else tuple(size)


def positions_of_a_row(columns: int, rows: int) -> int:
    """How many positions of each of so many rows are looked at, where there are as many."""
    wanted = math.ceil(max(PER_COLUMN * columns, LEAST_POSITIONS) / rows)
    return max(1, min(wanted, MOST_ROWS // rows))


class Gathering:
    """Adds up the second moment of a part of a job from the codes that its layers read.

    Args:
        channels: the part.
        chunks: all that stream, whoever has which.
        activation: what the codes were made with.
    """

    def __init__(self, job: Job, channels: slice, chunks: Sequence[Chunk], activation: ActivationParameters):
        self._channels = (slice(None), channels) if job.window is not None else (..., channels)
        columns = (channels.stop - channels.start) * job.per_channel
        self._params = activation.params
        self._shift = 128 if self._params.spec.signed else 0
        occurring = sorted({self._row(chunk) for chunk in chunks})
        grid = common_grid(
            [self._params.zero_point[row] + self._shift for row in occurring],
            [self._params.scale[row] for row in occurring],
        )
        rows = sum(len(chunk.rows) for chunk in chunks)
        self.moment = SecondMoment(columns, job.window, *grid, positions=positions_of_a_row(columns, rows))

    def add(self, codes: Tensor, chunk: Chunk) -> None:
        """The codes of a chunk."""
        row = self._row(chunk)
        codes = codes[self._channels]
        if self._shift:
            codes = codes.view(torch.uint8) ^ 128
        zero_point = self._params.zero_point[row] + self._shift
        self.moment.add(codes, chunk.rows, zero_point=zero_point, scale=self._params.scale[row])

    def _row(self, chunk: Chunk) -> int:
        return chunk.bin if self._params.per_timestep else 0
