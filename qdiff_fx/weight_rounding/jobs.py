"""Which second moments a block's layers need, and which layers need the same one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qdiff_fx.calibration.chunks import Chunk
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.ops.int_gram import MOST_ROWS
from qdiff_fx.quant.parameters import ActivationParameters
from qdiff_fx.weight_rounding.second_moment import SecondMoment, Window, common_grid

aten = torch.ops.aten

PER_COLUMN = 3
"""Positions, pixels or tokens, that are looked at for every column of a weight; see docs/quality.md."""
LEAST_POSITIONS = 4096


@dataclass(frozen=True)
class Job:
    """One second moment and the layers it serves: all that read the same codes through the same window.

    Attributes:
        columns: K, entries of one output channel of the layers' weights.
        window: None for linear layers.
        layers: in execution order.
    """

    columns: int
    window: Window | None
    layers: tuple[fx.Node, ...]

    @property
    def nbytes(self) -> int:
        """Of its Hessian."""
        return 4 * self.columns**2


def jobs_of(layers: Iterable[fx.Node], cap: int) -> tuple[list[Job], list[tuple[fx.Node, str]]]:
    """The jobs of some layers of the observed graph, in execution order, and why layers have none.

    Args:
        cap: bytes of a Hessian; a layer with a larger one has no job.
    """
    found: dict[tuple[object, ...], Job] = {}
    refused = []
    for layer in layers:
        job = _job(layer)
        if isinstance(job, Job) and job.nbytes > cap:
            job = f"its Hessian takes {job.nbytes} bytes, the cap is {cap}"
        if isinstance(job, str):
            refused.append((layer, job))
            continue
        key = layer.args[0], job.columns, job.window
        known = found.get(key)
        found[key] = Job(job.columns, job.window, (*(known.layers if known else ()), layer))
    return list(found.values()), refused


def _job(layer: fx.Node) -> Job | str:
    """Of one layer alone."""
    weight = value(operand(layer, 1))
    if is_op(layer, aten.linear.default):
        return Job(weight.shape[1], None, (layer,))
    if not is_op(layer, aten.conv2d.default):
        return "only linear layers and 2-d convolutions have one"
    arguments = bound(layer)
    if arguments["groups"] != 1:
        return "the convolution is grouped"
    sizes = [_pair(arguments[name]) for name in ("stride", "padding", "dilation")]
    return Job(weight[0].numel(), Window(tuple(weight.shape[2:]), *sizes), (layer,))


def _pair(size: list[int]) -> tuple[int, ...]:
    return tuple(size) * 2 if len(size) == 1 else tuple(size)


class Gathering:
    """Adds up a job's second moment from the codes that its layers read.

    Args:
        chunks: all that stream, whoever has which.
        activation: what the codes were made with.
    """

    def __init__(self, job: Job, chunks: Sequence[Chunk], activation: ActivationParameters):
        self._params = activation.params
        self._shift = 128 if self._params.spec.signed else 0
        occurring = sorted({self._row(chunk) for chunk in chunks})
        grid = common_grid(
            [self._params.zero_point[row] + self._shift for row in occurring],
            [self._params.scale[row] for row in occurring],
        )
        rows = sum(len(chunk.rows) for chunk in chunks)
        wanted = math.ceil(max(PER_COLUMN * job.columns, LEAST_POSITIONS) / rows)
        self.moment = SecondMoment(job.columns, job.window, *grid, positions=max(1, min(wanted, MOST_ROWS // rows)))

    def add(self, codes: Tensor, chunk: Chunk) -> None:
        """The codes of a chunk."""
        row = self._row(chunk)
        if self._shift:
            codes = codes.view(torch.uint8) ^ 128
        zero_point = self._params.zero_point[row] + self._shift
        self.moment.add(codes, chunk.rows, zero_point=zero_point, scale=self._params.scale[row])

    def _row(self, chunk: Chunk) -> int:
        return chunk.bin if self._params.per_timestep else 0
