"""Second moments of codes: XᵀX of rows X, added to a total."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register

SCHEMA = "(Tensor(a!) total, Tensor rows) -> ()"
MOST_ROWS = torch.iinfo(torch.int32).max // 128**2  # whose products cannot exceed 32 bits
_BLOCK_ROWS = 1024  # float64 holds their products exactly, and so it would those of 2^39


def reference(total: Tensor, rows: Tensor) -> None:
    """total += XᵀX, exactly, of rows X, int8 [R, K].

    Of the total, int32 [K, K], the upper triangle is read, and all of it is written, symmetric. Whoever adds up several
    calls sees to it that they have no more than `MOST_ROWS` rows in all: a total that exceeds 32 bits wraps.
    """
    check(total, rows)
    products = torch.zeros(total.shape, dtype=torch.float64, device=total.device)
    for some in rows.split(_BLOCK_ROWS):
        some = some.double()
        products.addmm_(some.T, some)
    upper = (total.long() + products.long()).triu()
    total.copy_(upper + upper.triu(1).T)


def check(total: Tensor, rows: Tensor) -> None:
    """Raise KernelError unless `int_gram` takes such tensors."""
    op = "int_gram"
    checks.plain(op, (total, rows))
    if rows.dtype != torch.int8 or rows.dim() != 2:
        raise checks.error(op, f"rows must be int8 (R, K), not {rows.dtype} {tuple(rows.shape)}")
    if rows.shape[0] > MOST_ROWS:
        raise checks.error(op, f"takes {MOST_ROWS} rows at most, not {rows.shape[0]}")
    shape = (rows.shape[1], rows.shape[1])
    if total.dtype != torch.int32 or tuple(total.shape) != shape or not total.is_contiguous():
        raise checks.error(op, f"the total must be contiguous int32 {shape}, not {total.dtype} {tuple(total.shape)}")


def fake(total: Tensor, rows: Tensor) -> None:
    """Nothing is returned."""
    check(total, rows)


register("int_gram", SCHEMA, reference, fake)
