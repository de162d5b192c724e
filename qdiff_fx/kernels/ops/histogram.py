"""How often numbers fall into bins whose widths are powers of two."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register

SCHEMA = "(Tensor rows, int exponent, int bins, int step) -> Tensor"
LEAST_EXPONENT, MOST_EXPONENT, MOST_BINS = -100, 127, 1 << 15
_CHUNK_ELEMENTS = 1 << 15  # small enough to stay in L2 between the passes over it


def reference(rows: Tensor, exponent: int, bins: int, step: int) -> Tensor:
    """Occurrences int64 [bins] of every `step`-th number of each row of finite numbers.

    Bin i covers `[i - bins / 2, i + 1 - bins / 2) * 2^exponent`; what lies outside is counted at the ends.
    """
    check(rows, exponent, bins, step)
    # Multiplying by a power of two is exact, except that small values may underflow when it is small.
    dtype = torch.float32 if exponent <= 0 else torch.float64
    total = torch.zeros(bins, dtype=torch.int64, device=rows.device)
    for chunk in rows[:, ::step].reshape(-1).split(_CHUNK_ELEMENTS):
        steps = (chunk.to(dtype) * 2.0**-exponent).floor_().add_(bins // 2).clamp_(0, bins - 1)
        total += torch.bincount(steps.to(torch.int16), minlength=bins)
    return total


def check(rows: Tensor, exponent: int, bins: int, step: int) -> None:
    """Raise KernelError unless `histogram` takes such a tensor and numbers."""
    op = "histogram"
    checks.plain(op, (rows,))
    checks.floating(op, "its input", rows)
    if rows.dim() != 2:
        raise checks.error(op, f"expected rows of numbers, not {tuple(rows.shape)}")
    checks.within(op, "the exponent", exponent, LEAST_EXPONENT, MOST_EXPONENT)
    checks.within(op, "bins", bins, 2, MOST_BINS)
    checks.within(op, "the step", step, 1, checks.MOST_ELEMENTS)


def fake(rows: Tensor, exponent: int, bins: int, step: int) -> Tensor:
    """One number for each bin."""
    check(rows, exponent, bins, step)
    return rows.new_empty(bins, dtype=torch.int64)


register("histogram", SCHEMA, reference, fake)
