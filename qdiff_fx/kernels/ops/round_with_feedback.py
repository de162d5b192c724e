"""Some columns of a weight as codes, each making up for what those before it left over."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register

SCHEMA = "(Tensor steps, Tensor pull, Tensor factor, int low, int high) -> (Tensor, Tensor, Tensor)"
MOST_COLUMNS = 128  # kMostFeedbackColumns of kernels.h


def reference(steps: Tensor, pull: Tensor, factor: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes from `low` to `high` of the K columns of O channels, the last column first.

    With what codes leave over, `left = steps - codes`, column i is rounded to the code nearest to
    `steps[i] + (pull[i] + sum over k > i of factor[i, k] left[k]) / factor[i, i]`: of all codes that makes
    `pull[i] + sum over k >= i of factor[i, k] left[k]` least.

    Args:
        steps: float32 [K, O], the weight in units of its scales; K is at most `MOST_COLUMNS`.
        pull: float32 [K, O], what columns that were rounded before these add.
        factor: float32 [K, K], upper triangular, its diagonal positive; what is below it is not read.
    Returns:
        codes, int8 [K, O]; left, float32 [K, O]; and what is left of those sums, squared and added up, float32 [O].
        Compiled kernels give the same to the bit. NaN becomes the lowest code.
    """
    check(steps, pull, factor, low, high)
    codes, left, sums = torch.empty_like(steps, dtype=torch.int8), torch.empty_like(steps), pull.clone()
    error = steps.new_zeros(steps.shape[1])
    for at in reversed(range(len(steps))):
        target = steps[at] + sums[at] / factor[at, at]
        value = target.clamp(low, high).nan_to_num(low).round()
        codes[at], left[at] = value.to(torch.int8), steps[at] - value
        sums[:at] += left[at] * factor[:at, at, None]  # the product is rounded before it is added
        off = (target - value) * factor[at, at]
        error += off * off
    return codes, left, error


def check(steps: Tensor, pull: Tensor, factor: Tensor, low: int, high: int) -> None:
    """Raise KernelError unless `round_with_feedback` takes such tensors and numbers."""
    op = "round_with_feedback"
    checks.plain(op, (steps, pull, factor))
    if steps.dim() != 2:
        raise checks.error(op, f"steps must be (K, O), not {tuple(steps.shape)}")
    columns, channels = steps.shape
    checks.within(op, "the number of columns", columns, 1, MOST_COLUMNS)
    if not -128 <= low <= high <= 127:
        raise checks.error(op, f"codes from {low} to {high} do not fit int8")
    wanted = (("steps", steps, (columns, channels)), ("the pull", pull, (columns, channels)))
    for what, x, shape in (*wanted, ("the factor", factor, (columns, columns))):
        if x.dtype != torch.float32 or tuple(x.shape) != shape or not x.is_contiguous():
            raise checks.error(op, f"{what} must be contiguous float32 {shape}, not {x.dtype} {tuple(x.shape)}")


def fake(steps: Tensor, pull: Tensor, factor: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Like the steps."""
    check(steps, pull, factor, low, high)
    return steps.new_empty(steps.shape, dtype=torch.int8), steps.new_empty(steps.shape), steps.new_empty(steps.shape[1])


register("round_with_feedback", SCHEMA, reference, fake)
