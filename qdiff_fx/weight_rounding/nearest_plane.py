"""Round a weight so that the layer's output, not the weight, changes least: error feedback in a Cholesky order.

For one output channel w [K] and inputs x with Hessian H = E[x xᵀ] the output changes by
`E[((w - ŵ)ᵀ x)²] = ‖(w - ŵ)ᵀ L‖²` where `H = L Lᵀ`, L lower triangular. Entry j of that vector holds the errors of
columns j..K, so columns are rounded from the last to the first, each making up for those before it. This is what OBQ
and GPTQ (Frantar et al., arXiv 2210.17323) do, in the form of Babai's nearest plane, which needs no inverse of H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import qdiff_fx.kernels.ops  # noqa: F401 - the operators
from qdiff_fx.errors import ConversionError
from qdiff_fx.kernels.ops.round_with_feedback import MOST_COLUMNS as BLOCK
from qdiff_fx.weight_rounding.cholesky import cholesky_

DAMPING = 0.01  # of the mean of the diagonal
DAMPING_OF_FEW = 0.05  # the same where there are as many rows as columns, twice as much of half as many
STAGES = 8  # parts of the columns that scales are compared after
SEARCHED = 1024  # columns of a weight whose scales are not all tried to the end
KEPT = {1: 4, 4: 3}  # scales of each channel that go on after so many stages
GATHERED = 256  # rows of the Hessian that are put in order at a time


@dataclass(frozen=True)
class HessianFactor:
    """`H + damping = L Lᵀ` with the columns in `order`.

    Attributes:
        order: int64 [K], columns of the weight, the least excited first.
        lower: float32 [K, K], L; what is above the diagonal means nothing.
        damping: what was added to the diagonal, in units of its mean.
        rows: how many the Hessian is of; 0 where nobody said.
    """

    order: Tensor
    lower: Tensor
    damping: float
    rows: int

    @property
    def few_rows(self) -> bool:
        """Whether there were fewer rows than columns: in some directions nothing but the damping is known."""
        return 0 < self.rows < len(self.order)


def factorise(hessian: Tensor, *, rows: int = 0, where: str = "") -> HessianFactor:
    """The factor of a Hessian, float32 [K, K], symmetric, at least positive semidefinite.

    Args:
        rows: how many it is of. The fewer there are, the more is added to its diagonal: directions in which they by
            chance lie close together are not worth rounding by.
    Raises:
        ConversionError: it is not finite.
    """
    diagonal = hessian.diagonal()
    if not bool(diagonal.sum().isfinite()) or not bool(hessian.sum().isfinite()):
        raise ConversionError("the Hessian of its inputs is not finite", where=where)
    order = diagonal.argsort(stable=True)
    step = float(diagonal.double().mean()) or 1.0
    lower = torch.empty_like(hessian)
    for damping in _dampings(len(order), rows):
        for start in range(0, len(order), GATHERED):
            some = order[start : start + GATHERED]
            torch.index_select(hessian[some], 1, order, out=lower[start : start + GATHERED])
        lower.diagonal().add_(damping * step)
        if cholesky_(lower):
            return HessianFactor(order, lower, damping, rows)
    raise ConversionError("the Hessian of its inputs is not positive definite", where=where)


def _dampings(columns: int, rows: int) -> Iterator[float]:
    """What is tried, until it is positive definite."""
    damping = max(DAMPING, min(1.0, DAMPING_OF_FEW * columns / rows)) if rows else DAMPING
    while damping <= 10:
        yield damping
        damping *= 10


def feedback_codes(
    weight: Tensor, scales: Tensor, factor: HessianFactor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """Codes of a weight under given scales, and what they do to the output.

    Args:
        weight: float32 [O, K].
        scales: float32 [O].
        factor: of the inputs' Hessian, K columns.
    Returns:
        codes, int8 [O, K]; the mean square error of every output channel, float32 [O] (that of the damped Hessian).
    """
    codes, error, _ = searched_codes(weight, scales[:, None], factor, qmin, qmax)
    return codes, error


def searched_codes(
    weight: Tensor, scales: Tensor, factor: HessianFactor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same under the best of some scales for each channel.

    All scales are tried on the most excited columns, fewer on the others: those which, by what their codes did so far
    and what nearest codes would do further on, promise least.

    Args:
        weight: float32 [O, K].
        scales: float32 [O, R].
        factor: of the inputs' Hessian, K columns.
    Returns:
        codes, int8 [O, K]; the mean square error of every output channel, float32 [O]; its scale, float32 [O].
    """
    rounding = _Rounding(weight, scales, factor, (qmin, qmax))
    columns = len(factor.order)
    stages = STAGES if columns >= SEARCHED else 1
    step = -(-columns // (stages * BLOCK)) * BLOCK
    for stage, end in enumerate(range(columns, 0, -step), 1):
        start = max(0, end - step)
        rounding.round(start, end)
        if start:
            rounding.keep(KEPT.get(stage, scales.shape[1]), start)
    rounding.keep(1, 0)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    codes.T[factor.order] = rounding.codes[:, :, 0]
    return codes, rounding.error()[:, 0], rounding.scales[:, 0]


class _Rounding:
    """A weight whose columns are being rounded, from the last to the first, under some scales for each channel.

    Attributes:
        scales: float32 [O, R], the scales that are still tried.
        codes: int8 [K, O, R], of the columns that have some.
        left: float32 [K, O, R], what they leave over, in units of the scale.
        sums: float32 [O, R], of the squares of what that does to the output, so far.
    """

    def __init__(self, weight: Tensor, scales: Tensor, factor: HessianFactor, limits: tuple[int, int]):
        self.factor, self.limits, self.scales = factor, limits, scales
        self.weight = weight.T[factor.order]  # [K, O]: what is rounded together lies together
        shape = (*self.weight.shape, scales.shape[1])
        self.codes, self.left = torch.empty(shape, dtype=torch.int8), torch.empty(shape)
        self.sums = torch.zeros_like(scales)

    def round(self, start: int, end: int) -> None:
        """Choose codes for the columns from `start` to before `end`; those from `end` on have some."""
        lower, left = self.factor.lower, self.left.flatten(1)
        pull = lower[end:, start:end].T @ left[end:]
        for last in range(end, start, -BLOCK):
            first = max(start, last - BLOCK)
            block = slice(first, last)
            steps = self.weight[block, :, None] / self.scales
            diagonal_block = lower[block, block].T.contiguous()
            codes, rest, error = torch.ops.qdiff.round_with_feedback(
                steps.flatten(1), pull[first - start : last - start], diagonal_block, *self.limits
            )
            self.codes[block], left[block] = codes.view(steps.shape), rest
            self.sums += error.view(self.sums.shape)
            if first > start:
                pull[: first - start].addmm_(lower[block, start:first].T, rest)

    def keep(self, count: int, ahead: int) -> None:
        """Go on with so many scales of each channel, while the first `ahead` columns have no codes."""
        if count >= self.scales.shape[1]:
            return
        expected = self.error() + self._expected(ahead)
        best = expected.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values  # [O, R]
        self.scales, self.sums = self.scales.gather(1, best), self.sums.gather(1, best)
        codes, left = (torch.empty(*x.shape[:2], count, dtype=x.dtype) for x in (self.codes, self.left))
        every = best.expand(len(codes) - ahead, *best.shape)
        torch.gather(self.codes[ahead:], 2, every, out=codes[ahead:])
        torch.gather(self.left[ahead:], 2, every, out=left[ahead:])
        self.codes, self.left = codes, left

    def error(self) -> Tensor:
        """The mean square error of the output, float32 [O, R], that the codes chosen so far make."""
        return self.sums * self.scales.square()

    def _expected(self, ahead: int) -> Tensor:
        """What nearest codes of the first `ahead` columns would add."""
        found = torch.zeros_like(self.scales)
        ends = self.factor.lower.diagonal()
        for start in range(0, ahead, BLOCK):  # which stays in a cache
            block = slice(start, min(start + BLOCK, ahead))
            weight, by = self.weight[block], ends[block, None]
            for index, scale in enumerate(self.scales.T):
                steps = weight / scale
                off = steps.round().clamp_(*self.limits).sub_(steps).mul_(by)
                found[:, index] += off.square_().sum(0)
        return found * self.scales.square()
