"""Weights as their nearest codes, each output channel with the scale that costs least."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register
from qdiff_fx.quant.numerics import quantize, weight_range
from qdiff_fx.quant.weight_search import search_scales

SCHEMA = "(Tensor weight, int bits, int candidates, float shrink, float power) -> (Tensor, Tensor)"
MOST_CANDIDATES, MOST_POWER = 1024, 8.0


def reference(weight: Tensor, bits: int, candidates: int, shrink: float, power: float) -> tuple[Tensor, Tensor]:
    """int8 codes like rows of numbers (out, in), and a float32 scale for each row: `weight ≈ scale * code`.

    Codes lie in `weight_range(bits)`. Of the scale under which nothing clips, and that times `1 - shrink * i`, i below
    `candidates`, it is the one with the least `sum |weight - scale * code|^power`; the larger one of equals, and 1 for
    zeros. A row that holds NaN or infinity has scale NaN.

    Compiled kernels give codes and scales that are the same for every instruction set and any number of threads. They
    read the power of what rounding leaves from a polynomial, off by 3e-4 of its mean (rms): where two candidates are
    as good as each other to about that, they may take the other one.
    """
    check(weight, bits, candidates, shrink, power)
    rows = weight.to(torch.float32)
    finite = rows.isfinite().all(dim=1)
    scales = search_scales(torch.where(finite[:, None], rows, 0.0), bits, candidates, shrink, power)
    codes = quantize(rows, scales, 0, *weight_range(bits), axis=0, dtype=torch.int8)
    return codes, torch.where(finite, scales, torch.nan)


def check(weight: Tensor, bits: int, candidates: int, shrink: float, power: float) -> None:
    """Raise KernelError unless `nearest_codes` takes such a tensor and numbers."""
    op = "nearest_codes"
    checks.plain(op, (weight,))
    checks.floating(op, "the weight", weight)
    if weight.dim() != 2:
        raise checks.error(op, f"expected rows of numbers (out, in), not {tuple(weight.shape)}")
    checks.within(op, "bits", bits, 2, 8)
    checks.within(op, "candidates", candidates, 1, MOST_CANDIDATES)
    if not (shrink > 0 and shrink * (candidates - 1) < 1):
        raise checks.error(op, f"{candidates} candidates cannot shrink by {shrink} each")
    if not 1 <= power <= MOST_POWER:
        raise checks.error(op, f"the power must be 1..8, not {power}")


def fake(weight: Tensor, bits: int, candidates: int, shrink: float, power: float) -> tuple[Tensor, Tensor]:
    """Rows side by side."""
    check(weight, bits, candidates, shrink, power)
    return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(weight.shape[:1], dtype=torch.float32)


register("nearest_codes", SCHEMA, reference, fake)
