"""The second moment of what a layer reads, added up in integers while rows pass: exact, whatever the order.

Rounding a layer's weights w changes its outputs by `E[(Δwᵀx)²] = Δwᵀ H Δw` per output channel: a quadratic in Δw whose
Hessian (up to a factor of 2) is the second moment `H = E[x xᵀ]` of its inputs. Every output channel has the same one.

Inputs are `x = (q - zero_point) · scale` of codes q. Products of codes less 128 are added up in 32 bits, their sums in
64, and the zero-point comes in at the end. So the result does not depend on the order of rows, on how they are batched,
or on how they are shared among processes, whose sums `merge` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import qdiff_fx.kernels.ops  # noqa: F401 - the operators
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import CalibrationError
from qdiff_fx.kernels.ops.int_gram import MOST_ROWS
from qdiff_fx.weight_rounding.positions import positions_of

POSITIONS = 64  # of one row: neighbours say nearly the same; the Hessian of K columns needs a few K in all
BUFFERED = 2048  # positions that are multiplied at once: each time all of the K x K total is read and written
SUMMED = 255  # codes less 128 whose sum 16 bits hold
BLOCK = 16  # columns of the total that are float64 at a time, and stay in a cache


class Window(NamedTuple):
    """What an output pixel of a convolution sees, each (height, width)."""

    kernel: Sequence[int]
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of what comes out."""
        found = []
        for i, size in enumerate((height, width)):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            found.append((size + 2 * self.padding[i] - reach) // self.stride[i] + 1)
        return found[0], found[1]


class SecondMoment:
    """Adds up over positions, output pixels or tokens, of rows of codes. A row is one sample of a batch.

    Args:
        columns: K, entries at one position: in features, or in channels times the kernel's size.
        window: None for a linear layer, else a convolution's: kernel, stride, padding, dilation.
        zero_point, scale: of the codes, 0..255.
        positions: of every row that are taken, at most.
    Attributes:
        count: positions that were added, at most `MOST_ROWS`.
        rows: rows that were.
        total: int32 [K, K], of codes less 128; empty before some were added.
        sums: int64 [K], of codes less 128.
    """

    def __init__(
        self,
        columns: int,
        window: Sequence[Sequence[int]] | None,
        zero_point: int,
        scale: float,
        *,
        positions: int = POSITIONS,
    ):
        self.columns, self.positions = columns, positions
        self.window = None if window is None else Window(*map(tuple, window))
        self.zero_point, self.scale = zero_point, scale
        self.count = self.rows = 0
        self.total = torch.empty(0, 0, dtype=torch.int32)
        self.sums = torch.zeros(columns, dtype=torch.int64)
        self._waiting: list[Tensor] = []  # int8 [P, K], codes less 128

    @property
    def nbytes(self) -> int:
        """What it takes in memory once something was added, without what waits to be."""
        return 4 * self.columns**2 + 8 * self.columns

    def add(
        self, codes: Tensor, rows: Sequence[int], *, zero_point: int | None = None, scale: float | None = None
    ) -> None:
        """Add some positions of every row; which ones depends on the row's number alone.

        Args:
            codes: uint8 [N, C, H, W] for a convolution, [N, ..., K] for a linear layer.
            rows: their numbers among all rows, whoever has the others.
            zero_point, scale: where these codes have others, as those of another bin of timesteps do: they are brought
                to the nearest codes of this one's, which should reach as far (`common_grid`).
        Raises:
            CalibrationError: the codes are not of this layer, or there are more positions than 32 bits can add up.
        """
        self._check(codes, rows)
        if not len(rows):
            return
        table = self._table(zero_point, scale)
        picked = (self._picked_tokens if self.window is None else self._picked_pixels)(codes, rows, table)
        if self.count + len(picked) > MOST_ROWS:
            raise CalibrationError(
                f"{self.count + len(picked)} positions may add up to more than 32 bits",
                where="second moments",
                fix=f"Take fewer positions of a row, or fewer rows: {MOST_ROWS} in all",
            )
        self.count += len(picked)
        self.rows += len(rows)
        self._waiting.append(picked.bitwise_xor_(128).view(torch.int8))  # the code less 128
        if sum(map(len, self._waiting)) >= BUFFERED:
            self._settle()

    def merge(self, other: SecondMoment) -> None:
        """Add what another one saw of the same layer, exactly.

        Raises:
            CalibrationError: it is of another layer or of other codes, or both together are too many.
        """
        if self._kind() != other._kind():
            raise CalibrationError("they are of different layers or codes", where="second moments")
        if self.count + other.count > MOST_ROWS:
            raise CalibrationError(f"both have more than {MOST_ROWS} positions", where="second moments")
        self._settle()
        other._settle()
        self.total.add_(other.total)
        self.sums.add_(other.sums)
        self.count, self.rows = self.count + other.count, self.rows + other.rows

    def add_up(self, workers: Workers, owner: int) -> None:
        """All processes' of the same layer become the owner's; of the others only the counts are left, of all."""
        counts = [report for report, _ in workers.gather([self.count, self.rows])]
        self._settle()
        workers.add_up(self.total, owner)
        workers.add_up(self.sums, owner)
        self.count, self.rows = (sum(each) for each in zip(*counts, strict=True))

    def hessian(self, *, last: bool = False) -> Tensor:
        """E[x xᵀ] over the positions, float32 [K, K], symmetric: each entry the exact one, rounded.

        Args:
            last: nothing will be added or asked for any more: it is made in the memory of the total.
        Raises:
            CalibrationError: nothing was added.
        """
        if not self.count:
            raise CalibrationError("no rows came", where="second moments", fix="Calibrate with some")
        self._settle()
        offset = 128 - self.zero_point
        sums = self.sums.double() * offset
        result = self.total.view(torch.float32) if last else torch.empty(self.columns, self.columns)
        for start in range(0, self.columns, BLOCK):
            block = slice(start, start + BLOCK)
            exact = self.total[block].double().add_(sums).add_(sums[block, None]).add_(self.count * offset**2)
            result[block] = exact.mul_(self.scale**2 / self.count)
        if last:
            self.total = torch.empty(0, 0, dtype=torch.int32)
        return result

    def _settle(self) -> None:
        """Add what waits."""
        if not self.total.numel():
            self.total = torch.zeros(self.columns, self.columns, dtype=torch.int32)
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)
        self._waiting = []
        torch.ops.qdiff.int_gram(self.total, rows)
        for some in rows.split(SUMMED):
            self.sums.add_(some.short().sum(0, dtype=torch.int16))

    def _kind(self) -> tuple[object, ...]:
        return self.columns, self.window, self.zero_point, self.scale, self.positions

    def _check(self, codes: Tensor, rows: Sequence[int]) -> None:
        shape = tuple(codes.shape)
        if self.window is None:
            fits = codes.dim() >= 2 and shape[-1] == self.columns
        else:
            fits = codes.dim() == 4 and shape[1] * self.window.kernel[0] * self.window.kernel[1] == self.columns
            fits = fits and min(self.window.outputs(*shape[2:])) > 0
        if not fits or codes.dtype != torch.uint8 or shape[0] != len(rows):
            raise CalibrationError(
                f"codes {codes.dtype} {shape} of {len(rows)} rows are not what {self.columns} columns are made of",
                where="second moments",
            )

    def _picked_tokens(self, codes: Tensor, rows: Sequence[int], table: Tensor | None) -> Tensor:
        """uint8 [P, K]."""
        tokens = codes.reshape(-1, self.columns)
        each = len(tokens) // len(rows)
        chosen = positions_of(rows, each, self.positions) + torch.arange(len(rows))[:, None] * each
        return _taken(tokens, chosen, table)

    def _picked_pixels(self, codes: Tensor, rows: Sequence[int], table: Tensor | None) -> Tensor:
        """uint8 [P, C * kh * kw], what some output pixels see; where it is outside the image, the code of zero."""
        assert self.window is not None
        channels, height, width = codes.shape[1:]
        out_height, out_width = self.window.outputs(height, width)
        chosen = positions_of(rows, out_height * out_width, self.positions)
        down, down_inside = self._reached(chosen // out_width, height, 0)  # [N, P, kh]
        across, across_inside = self._reached(chosen % out_width, width, 1)  # [N, P, kw]
        first = torch.arange(len(rows))[:, None, None, None] * height
        pixels = (first + down[..., :, None]) * width + across[..., None, :]  # [N, P, kh, kw]
        found = _taken(codes.permute(0, 2, 3, 1).reshape(-1, channels), pixels, table)
        outside = ~(down_inside[..., :, None] & across_inside[..., None, :]).flatten()
        found.index_fill_(0, outside.nonzero()[:, 0], self.zero_point)  # a mask takes as long as for all of them
        taps = self.window.kernel[0] * self.window.kernel[1]
        return found.view(-1, taps, channels).transpose(1, 2).reshape(-1, self.columns)

    def _reached(self, outputs: Tensor, size: int, dim: int) -> tuple[Tensor, Tensor]:
        """Where each tap of the kernel reads for some output rows or columns, and whether that is in the image."""
        assert self.window is not None
        taps = torch.arange(self.window.kernel[dim]) * self.window.dilation[dim] - self.window.padding[dim]
        places = outputs[..., None] * self.window.stride[dim] + taps
        return places.clamp(0, size - 1), (places >= 0) & (places < size)

    def _table(self, zero_point: int | None, scale: float | None) -> Tensor | None:
        """The nearest code of this one's quantizer for each of another's; none where they are the same."""
        zero_point = self.zero_point if zero_point is None else zero_point
        scale = self.scale if scale is None else scale
        if (zero_point, scale) == (self.zero_point, self.scale):
            return None
        steps = (torch.arange(256) - zero_point).double() * (scale / self.scale)
        return steps.round_().add_(self.zero_point).clamp_(0, 255).to(torch.uint8)


def _taken(codes: Tensor, places: Tensor, table: Tensor | None) -> Tensor:
    """Rows of codes [X, C] at some places, uint8 [places, C], looked up in a table if there is one."""
    places = places.flatten()
    if table is None:
        return codes.index_select(0, places)
    if len(places) < len(codes):
        return _looked_up(codes.index_select(0, places), table)
    return _looked_up(codes, table).index_select(0, places)


def _looked_up(codes: Tensor, table: Tensor) -> Tensor:
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


def common_grid(zero_points: Sequence[int], scales: Sequence[float]) -> tuple[int, float]:
    """The zero-point and the scale of codes that reach as far as those of several quantizers."""
    least = min(-zero_point * scale for zero_point, scale in zip(zero_points, scales, strict=True))
    most = max((255 - zero_point) * scale for zero_point, scale in zip(zero_points, scales, strict=True))
    if len(set(scales)) == 1 and len(set(zero_points)) == 1:
        return zero_points[0], scales[0]
    scale = (most - least) / 255
    return round(-least / scale), scale
