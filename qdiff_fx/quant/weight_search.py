"""The search for weight scales: every candidate tried, the best one kept for each output channel."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from qdiff_fx.quant.numerics import SMALLEST_SCALE, valid_scale, weight_range

CHUNK_ELEMENTS = 1 << 15  # stays in L2, and torch runs ops this small on one thread
CHECK_EVERY = 8  # candidates between two looks at the stopping bound


def search_scales(rows: Tensor, bits: int, candidates: int, shrink: float, p: float) -> Tensor:
    """The scale of every row under which codes in `weight_range(bits)` cost least.

    The first candidate is the smallest scale under which nothing clips, `max(max(w) / qmax, min(w) / qmin)`, the i-th
    that times `1 - shrink * i`; the one with the least `sum |w - ŵ|^p` is taken, the first of equals. A row of zeros
    gets scale 1.

    Args:
        rows: finite float32 [O, K].
    Returns:
        float32 [O].
    """
    qmin, qmax = weight_range(bits)
    search = partial(_search_scale, qmin=qmin, qmax=qmax, p=p, candidates=candidates, shrink=shrink)
    # A chunk per thread: thousands of tiny ops would otherwise each wait for a barrier of torch's own threads.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return torch.cat([rows.new_empty(0), *threads.map(search, _row_chunks(rows))])


def _row_chunks(rows: Tensor) -> Iterator[Tensor]:
    """A cache-sized number of rows at a time."""
    step = max(1, CHUNK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step]


def _search_scale(rows: Tensor, *, qmin: int, qmax: int, p: float, candidates: int, shrink: float) -> Tensor:
    """The best of `candidates` scales for every row of [R, K]."""
    if rows.shape[1] == 0:
        return torch.ones(rows.shape[0], device=rows.device)
    smallest, largest = rows.aminmax(dim=1)
    unclipped = valid_scale(torch.maximum(largest.double() / qmax, smallest.double() / qmin))
    if candidates == 1:
        return unclipped
    # In units of the unclipped scale every row has the same candidates, and no error under- or overflows.
    units = rows * (1.0 / unclipped)[:, None]
    best_ratio, best_error = torch.ones_like(unclipped), torch.full_like(unclipped, torch.inf)
    scratch = torch.empty_like(units), torch.empty_like(units)
    for index in range(candidates):
        ratio = 1 - shrink * index
        look = index % CHECK_EVERY == 0
        if look and bool((_clipping_error(units, ratio, qmin, qmax, p) > best_error).all()):
            break  # clipping only grows as the scale shrinks: no later candidate can win
        error = _rounding_error(units, ratio, qmin, qmax, p, scratch)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, ratio, best_ratio)
    return (unclipped * best_ratio).clamp(min=SMALLEST_SCALE)


def _rounding_error(
    units: Tensor, scale: float, qmin: int, qmax: int, p: float, scratch: tuple[Tensor, Tensor]
) -> Tensor:
    """`sum |u - û|^p` of every row of [R, K]; the two scratch tensors have its shape."""
    steps, codes = scratch
    torch.mul(units, 1.0 / scale, out=steps)
    torch.round(steps, out=codes).clamp_(qmin, qmax)
    unit: float = scale**p
    return _sum_of_powers(steps.sub_(codes).abs_(), p) * unit


def _clipping_error(units: Tensor, scale: float, qmin: int, qmax: int, p: float) -> Tensor:
    """The part of `_rounding_error` that no finer grid could remove: values beyond the outermost codes."""
    return _sum_of_powers((units - units.clamp(qmin * scale, qmax * scale)).abs_(), p)


def _sum_of_powers(magnitudes: Tensor, p: float) -> Tensor:
    """`sum x^p` over dim 1 of non-negative [R, K], overwriting it. exp2(p log2 x) is much faster than pow."""
    powers = magnitudes.square_() if p == 2 else magnitudes.log2_().mul_(p).exp2_()
    return powers.sum(dim=1)
