"""Quantization numerics as pure functions: integer ranges, qparams, (de)quantize.

One invariant runs through the file: `x ≈ (q - zero_point) * scale` with integer codes `q` in `[qmin, qmax]`.
`zero_point` is itself a code, so 0.0 is always represented exactly (padding and skipped inputs stay exact).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.errors import CalibrationError, ConfigError

MIN_BITS, MAX_BITS = 2, 16
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # its reciprocal is still finite


def integer_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """The codes `(qmin, qmax)` of a two's complement or an unsigned integer: 8 bits, (-128, 127) or (0, 255).

    Raises:
        ConfigError: bits is not an integer in 2..16.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"unsupported bits {bits!r}", where="bits", fix=f"Use {MIN_BITS} to {MAX_BITS}")
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def weight_range(bits: int) -> tuple[int, int]:
    """The codes symmetric weights may take: [-127, 127] at 8 bits and above, the full [-8, 7] below.

    Below 8 bits the extra negative code matters (a sixteenth of the codes at 4 bits). At 8 bits it is worth
    0.4 % and costs: -128 has no negation in int8, and kernels that add pairs of products may overflow on it.
    """
    qmin, qmax = integer_range(bits, signed=True)
    return (qmin, qmax) if bits < 8 else (-qmax, qmax)


def choose_qparams(
    lo: Tensor | float, hi: Tensor | float, bits: int, *, symmetric: bool, signed: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point under which `[min(lo, 0), max(hi, 0)]` is covered, elementwise.

    Asymmetric: `scale = (hi - lo) / (qmax - qmin)`, `zero_point = qmin - round(lo / scale)`: every x inside the
    range is off by at most `scale / 2`. Symmetric: `scale = max(|lo|, |hi|) / (2^(bits-1) - 1)` with the
    zero point in the middle (0 when signed, 2^(bits-1) when not): the most negative code stays unused.
    The empty range `lo = hi = 0` gets scale 1 (any scale represents zeros exactly).

    Args:
        lo, hi: range ends, any shape S (broadcast against each other).
    Returns:
        scale float32 [S], zero_point int64 [S].
    Raises:
        CalibrationError: a range end is NaN or infinite, or lo > hi.
    """
    qmin, qmax = integer_range(bits, signed=signed)
    low, high = _checked_range(lo, hi)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        scale = valid_scale(torch.maximum(-low, high) / ((1 << (bits - 1)) - 1))
        return scale, torch.full_like(scale, 0 if signed else 1 << (bits - 1), dtype=torch.int64)
    scale = valid_scale((high - low) / (qmax - qmin))
    zero_point = (qmin - (low / scale.double()).round()).clamp(qmin, qmax)
    empty = low == high
    return scale, torch.where(empty, 0.0, zero_point).to(torch.int64)


def choose_grid(lo: Tensor, hi: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What signed codes under `choose_qparams` stand for: the step, and the first and the last multiple of it.

    Args:
        lo, hi: range ends, any shape S.
    Returns:
        scale float32 [S]; first and last int64 [S], so that `scale * first <= x̂ <= scale * last`.
    Raises:
        CalibrationError: as `choose_qparams`.
    """
    scale, zero_point = choose_qparams(lo, hi, bits, symmetric=symmetric, signed=True)
    qmin, qmax = integer_range(bits, signed=True)
    return scale, qmin - zero_point, qmax - zero_point


def _checked_range(lo: Tensor | float, hi: Tensor | float) -> tuple[Tensor, Tensor]:
    """Both ends as float64 (their difference must not overflow), broadcast to one shape and checked."""
    low, high = torch.broadcast_tensors(
        torch.as_tensor(lo, dtype=torch.float64), torch.as_tensor(hi, dtype=torch.float64)
    )
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise CalibrationError(
            f"the range is not finite (lo {low.flatten()[:4].tolist()}, hi {high.flatten()[:4].tolist()})",
            fix="Look for NaN or infinity in the calibration data, or for an observer that saw nothing",
        )
    if bool((low > high).any()):
        first = int((low > high).flatten().nonzero()[0])
        raise CalibrationError(f"lo {low.flatten()[first]:g} is above hi {high.flatten()[first]:g}")
    return low, high


def valid_scale(scale: Tensor) -> Tensor:
    """float32 scales that are positive and have a finite reciprocal; an empty range gets 1."""
    return torch.where(scale == 0, 1.0, scale.clamp(min=SMALLEST_SCALE)).to(torch.float32)


def quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """`q = clamp(round(x * (1 / scale)) + zero_point, qmin, qmax)`, so that `x ≈ (q - zero_point) * scale`.

    Ties round to even. Bit-identical to `quantized_decomposed.quantize_per_tensor` or, with `axis`,
    `quantize_per_channel`.

    Args:
        x: any shape; float16 and bfloat16 are widened to float32 first.
        scale, zero_point: one value, or with `axis` one per slice of x along it, shape [x.shape[axis]].
        dtype: integer type of the codes; it must hold qmin and qmax.
    Raises:
        ConfigError: dtype cannot hold the codes.
    """
    info = torch.iinfo(dtype)
    if qmin < info.min or qmax > info.max:
        raise ConfigError(f"{dtype} cannot hold codes in [{qmin}, {qmax}]", where="dtype")
    return _rounded(x, scale, zero_point, qmin, qmax, axis).to(dtype)


def dequantize(codes: Tensor, scale: Tensor | float, zero_point: Tensor | int, *, axis: int | None = None) -> Tensor:
    """`x̂ = (q - zero_point) * scale`, float32; shapes as in `quantize`."""
    return (codes.to(torch.float32) - _along(zero_point, codes, axis)) * _along(scale, codes, axis)


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
) -> Tensor:
    """`dequantize(quantize(x))` without the integer tensor in between; float32, bit-identical to the pair."""
    return dequantize(_rounded(x, scale, zero_point, qmin, qmax, axis), scale, zero_point, axis=axis)


def _rounded(
    x: Tensor, scale: Tensor | float, zero_point: Tensor | int, qmin: int, qmax: int, axis: int | None
) -> Tensor:
    """The codes, still as float32."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.to(torch.float32)
    # Multiplying by the reciprocal (rather than dividing) is what every integer backend does.
    codes = torch.round(x * (1.0 / _along(scale, x, axis))) + _along(zero_point, x, axis)
    return codes.clamp(qmin, qmax)


def _along(values: Tensor | float, x: Tensor, axis: int | None) -> Tensor | float:
    """Per-channel values [C] viewed so that they broadcast along `axis` of x: [1, .., C, .., 1]."""
    if axis is None or not isinstance(values, Tensor):
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.view(shape)


def sqnr_db(reference: Tensor, approx: Tensor) -> float:
    """Signal to quantization noise, `10 log10(sum r² / sum (r - a)²)` in dB; infinite when they are equal."""
    signal = reference.double()
    noise = (signal - approx.double()).square().sum()
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(signal.square().sum() / noise))
