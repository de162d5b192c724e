"""Attention on codes: `int_attention`, always in plain torch, and `int_attention_vnni`, which has compiled kernels.

The second has two overloads: its scales are tensors, or they are numbers and a quantizer may follow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.epilogue import OUTPUT
from qdiff_fx.kernels.ops import act_quantize
from qdiff_fx.kernels.registration import register

SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor q_scale, Tensor q_zero_point, Tensor k_scale, "
    "Tensor v_scale, float softmax_scale, int prob_bits, ScalarType out_dtype) -> Tensor"
)
SCHEMA_OF_NUMBERS = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, float q_scale, int q_zero_point, float k_scale, float v_scale, "
    f"float softmax_scale, int prob_bits, {OUTPUT}) -> Tensor"
)
_OP = "int_attention"
_FLOATS = (*checks.FLOATS, torch.float64)
_SCRATCH_ELEMENTS = 1 << 23  # scores held at a time; rows are independent, so long queries go in blocks
_EXACT_FLOAT32_DIM = 512  # |q - zero_point| <= 255, |k| <= 128: dots over fewer dims are exact below 2**24


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    q_scale: Tensor,
    q_zero_point: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    softmax_scale: float,
    prob_bits: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Attention on integer codes with integer probabilities.

    ``s = softmax_scale * q_scale * k_scale * sum_d (q - q_zero_point) k + mask``,
    ``P = round(exp(s - rowmax(s)) * (2**prob_bits - 1))``, ``out = v_scale * sum_j P_j v_j / sum_j P_j``.
    Both sums are exact. The probabilities are Q-Diffusion's "quantized softmax output" (section 4.2), with
    zero point 0 and, because a row's largest code is always ``2**prob_bits - 1``, a scale of its own per row.

    Args:
        q: uint8 codes (..., L, D).
        k, v: int8 codes (..., S, D), same leading dims, zero point 0.
        mask: None, bool (True = may attend) or float (finite or -inf) added to the scores; broadcasts to
            (..., L, S). A row that may attend nothing gives zeros.
        q_scale, k_scale, v_scale: one positive finite number each.
        q_zero_point: one integer in 0..255.
        softmax_scale: usually ``D ** -0.5``.
        prob_bits: 1..16.
        out_dtype: a floating dtype.

    Returns:
        (..., L, D); when q is a (B, H, L, D) view of (B, L, H, D) memory, so is the result.

    Raises:
        KernelError: shapes or dtypes that do not fit, or a scale that is not positive and finite.
    """
    check(q, k, v, mask, softmax_scale, prob_bits, out_dtype)
    score_scale = softmax_scale * _positive(q_scale, "q_scale") * _positive(k_scale, "k_scale")
    if not score_scale <= checks.MOST_SCALE:
        raise _error(f"softmax_scale * q_scale * k_scale must be finite in float32, not {score_scale}")
    value_scale = _positive(v_scale, "v_scale")
    zero_point = _zero_point(q_zero_point)
    out = empty_output(q, out_dtype)
    if out.numel() == 0 or k.shape[-2] == 0:
        return out.zero_()

    exact = torch.float32 if q.shape[-1] <= _EXACT_FLOAT32_DIM else torch.float64
    keys, values = k.to(exact).transpose(-1, -2), v.to(torch.float64)
    rows_at_once = max(1, _SCRATCH_ELEMENTS // (math.prod(q.shape[:-2]) * k.shape[-2]))
    full_mask = None if mask is None else mask.expand(*q.shape[:-1], k.shape[-2])
    for first in range(0, q.shape[-2], rows_at_once):
        rows = slice(first, first + rows_at_once)
        scores = ((q[..., rows, :].to(exact) - zero_point) @ keys).to(torch.float32).mul_(score_scale)
        if full_mask is not None:
            scores = _masked(scores, full_mask[..., rows, :])
        codes = _probability_codes(scores, 2**prob_bits - 1).to(torch.float64)
        total = codes.sum(-1, keepdim=True).clamp_(min=1)
        out[..., rows, :] = (codes @ values).mul_(value_scale).div_(total).to(torch.float32)
    return out


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    softmax_scale: float,
    prob_bits: int,
    out_dtype: torch.dtype,
) -> None:
    """Raise KernelError unless shapes, dtypes and options fit together; reads no tensor data."""
    checks.plain(_OP, (q, k, v, mask))
    if (q.dtype, k.dtype, v.dtype) != (torch.uint8, torch.int8, torch.int8):
        raise _error(f"q must be uint8, k and v int8, not {q.dtype}, {k.dtype}, {v.dtype}")
    if q.dim() < 2:
        raise _error(f"q needs at least 2 dims (..., L, D), not {q.dim()}")
    same_lead = k.dim() == q.dim() and k.shape[:-2] == q.shape[:-2] and k.shape[-1] == q.shape[-1]
    if k.shape != v.shape or not same_lead:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise _error(f"shapes must be q (..., L, D), k and v (..., S, D), not {shapes}")
    if mask is not None and mask.dtype != torch.bool and mask.dtype not in _FLOATS:
        raise _error(f"mask must be bool or floating, not {mask.dtype}")
    if mask is not None and not _broadcasts(mask.shape, (*q.shape[:-1], k.shape[-2])):
        raise _error(f"mask {tuple(mask.shape)} does not broadcast to {(*q.shape[:-1], k.shape[-2])}")
    checks.positive(_OP, "softmax_scale", softmax_scale)
    if not 1 <= prob_bits <= 16:
        raise _error(f"prob_bits must be 1..16, not {prob_bits}")
    if out_dtype not in _FLOATS:
        raise _error(f"out_dtype must be floating, not {out_dtype}")


def empty_output(q: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised result for queries (..., L, D): tokens outside heads in memory if q is laid out so."""
    tokens_outside = q.dim() == 4 and q.shape[1] > 1 and q.shape[2] > 1 and q.stride(1) < q.stride(2)
    if not tokens_outside:
        return q.new_empty(q.shape, dtype=dtype)
    batch, heads, length, dim = q.shape
    return q.new_empty((batch, length, heads, dim), dtype=dtype).transpose(1, 2)


def fake(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    """Laid out as `empty_output` says."""
    softmax_scale, prob_bits, out_dtype = rest[-3:]
    check(q, k, v, mask, softmax_scale, prob_bits, out_dtype)
    return empty_output(q, out_dtype)


def reference_of_numbers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    """`reference` with numbers for scales; `out_dtype` may be that of codes, with the quantizer that follows."""
    q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits, out_dtype, *quantizer = rest
    codes = out_dtype in checks.CODES
    dtype = torch.float32 if codes else out_dtype
    if codes:
        checks.quantizer(_OP, out_dtype, *quantizer)
    q_scale, q_zero_point, k_scale, v_scale = map(torch.tensor, (q_scale, q_zero_point, k_scale, v_scale))
    out = reference(q, k, v, mask, q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits, dtype)
    return act_quantize.reference(out, Activation.NONE, out_dtype, *quantizer) if codes else out


def fake_of_numbers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    """Laid out as `empty_output` says."""
    softmax_scale, prob_bits, out_dtype = rest[4:7]
    dtype = torch.float32 if out_dtype in checks.CODES else out_dtype
    check(q, k, v, mask, softmax_scale, prob_bits, dtype)
    return empty_output(q, out_dtype)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -math.inf)
    return scores.add_(mask.to(torch.float32))


def _probability_codes(scores: Tensor, levels: int) -> Tensor:
    peak = scores.amax(-1, keepdim=True)
    peak = peak.masked_fill_(peak.isinf(), 0.0)  # everything masked: exp(-inf - 0) = 0
    return scores.sub_(peak).exp_().mul_(levels).round_()


def _broadcasts(shape: torch.Size, target: tuple[int, ...]) -> bool:
    if len(shape) > len(target):
        return False
    tail = target[len(target) - len(shape) :]
    return all(size == 1 or size == wanted for size, wanted in zip(shape, tail, strict=True))


def _positive(scale: Tensor, name: str) -> float:
    value = float(checks.number_of(_OP, name, scale))
    checks.positive(_OP, name, value)
    return value


def _zero_point(tensor: Tensor) -> int:
    value = checks.number_of(_OP, "q_zero_point", tensor)
    if value not in range(256):
        raise _error(f"q_zero_point must be 0..255, not {value}")
    return int(value)


def _error(what: str) -> KernelError:
    return checks.error(_OP, what)


# The kernel reads any strides, but the result's layout follows q's: the compiler must keep them.
_TAGS = (torch.Tag.needs_fixed_stride_order,)
int_attention = register("int_attention", SCHEMA, reference, fake, compiled=False, tags=_TAGS)
int_attention_vnni = register("int_attention_vnni", SCHEMA, reference, fake, called=_OP, tags=_TAGS)
register("int_attention_vnni.numbers", SCHEMA_OF_NUMBERS, reference_of_numbers, fake_of_numbers, called=_OP, tags=_TAGS)
