"""Integer attention in float64, and how far rounding may take a kernel from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIXED_POINT_ERROR = 5e-4  # of a probability, relative


def exact_and_tolerance(args: tuple, fixed_point: bool) -> tuple[Tensor, Tensor]:
    """Float64 result (..., L, D) and the error that rounding may make in it, (..., L, 1)."""
    q, k, v, mask, q_scale, zero_point, k_scale, v_scale, softmax_scale, bits, _ = args
    levels = 2**bits - 1
    scale = softmax_scale * float(q_scale) * float(k_scale)
    scores = scale * ((q.double() - int(zero_point)) @ k.double().transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    peak = scores.amax(-1, keepdim=True)
    peak = peak.masked_fill(peak.isinf(), 0.0)
    real_codes = (scores - peak).exp() * levels
    codes = real_codes.round()
    total = codes.sum(-1, keepdim=True)
    out = float(v_scale) * (codes @ v.double()) / total.clamp(min=1)

    # |scores| matters because s and m are rounded before they are subtracted.
    rounding = real_codes * (2e-6 + 3e-7 * (scores.nan_to_num(neginf=0).abs() + peak.abs()))
    if fixed_point:
        rounding += real_codes * FIXED_POINT_ERROR
    may_flip = ((real_codes % 1 - 0.5).abs() <= rounding).sum(-1, keepdim=True)
    per_flip = (127 * float(v_scale) + out.abs().amax(-1, keepdim=True)) / (total - may_flip).clamp(min=1)
    return out, may_flip * per_flip + 1e-6 * 127 * float(v_scale)


def assert_exact(out: Tensor, args: tuple, *, fixed_point: bool = True) -> None:
    want, tolerance = exact_and_tolerance(args, fixed_point)
    if out.dtype != torch.float32:  # one more rounding, to half a unit in the last place
        tolerance = tolerance + want.abs() * torch.finfo(out.dtype).eps
    excess = (out.double() - want).abs() - tolerance
    assert out.isfinite().all()
    assert (excess <= 0).all(), f"off by {float(excess.max()):.3g} more than rounding explains"
