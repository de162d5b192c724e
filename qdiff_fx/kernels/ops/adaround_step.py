"""A step of learning how weights are rounded: AdaRound's gradient and regulariser, Adam, and the next weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register
from qdiff_fx.quant.numerics import weight_range

SCHEMA = (
    "(Tensor(a!) up, Tensor(b!) first, Tensor(c!) second, Tensor(d!) weight, Tensor base, Tensor scales, "
    "Tensor gradient, int bits, int step, float rate, float pull, float beta) -> ()"
)
GAMMA, ZETA = -0.1, 1.1
MOST_STEPS = 1 << 31
_DECAY = 0.9, 0.999
_EPSILON = 1e-8
_LEAST_BASE = 1e-30  # of a power


def rounded_up(up: Tensor) -> Tensor:
    """`h(V) = clamp(sigmoid(V) (ζ - γ) + γ, 0, 1)`: how far up from the code below it each weight is rounded."""
    return (torch.sigmoid(up) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def reference(
    up: Tensor,
    first: Tensor,
    second: Tensor,
    weight: Tensor,
    base: Tensor,
    scales: Tensor,
    gradient: Tensor,
    bits: int,
    step: int,
    rate: float,
    pull: float,
    beta: float,
) -> None:
    """Move V by a step of Adam and make `weight = scale * clamp(base + h(V), qmin, qmax)` of it.

    The gradient by V is that of the loss, given by the weight, and of `pull * sum 1 - |2 h(V) - 1|^beta`.

    Args:
        up: V, float32 [R, C]; as are the first and the second moment of its gradient, zeros before step 1.
        weight: what is written; floats [R, C].
        base: the code below each weight, int8 [R, C].
        scales: of the rows, float32 [R].
        gradient: of the loss by the weight; floats [R, C].
        bits: of the codes, see `weight_range`.
        step: from 1.

    Compiled kernels give the same for every instruction set and any number of threads, and what this does to about
    1e-6 of each number.
    """
    check(up, first, second, weight, base, scales, gradient, bits, step, rate, pull, beta)
    low, high = weight_range(bits)
    sigmoid, soft = torch.sigmoid(up), rounded_up(up)
    code = base + soft
    by_up = torch.where((code < low) | (code > high), 0.0, gradient.float() * scales[:, None])
    if pull:
        side = 2 * soft - 1
        strength = side.abs().clamp(min=_LEAST_BASE).pow(beta - 1) * (-2 * beta * pull)
        by_up = by_up + torch.copysign(strength, -side)
    inside = sigmoid * (ZETA - GAMMA) + GAMMA == soft
    by_v = by_up * torch.where(inside, sigmoid * (1 - sigmoid) * (ZETA - GAMMA), 0.0)
    first.lerp_(by_v, 1 - _DECAY[0])
    second.mul_(_DECAY[1]).addcmul_(by_v, by_v, value=1 - _DECAY[1])
    root = second.sqrt().div_(math.sqrt(1 - _DECAY[1] ** step)).add_(_EPSILON)
    up.addcdiv_(first, root, value=-rate / (1 - _DECAY[0] ** step))
    weight.copy_((base + rounded_up(up)).clamp_(low, high) * scales[:, None])


def check(
    up: Tensor,
    first: Tensor,
    second: Tensor,
    weight: Tensor,
    base: Tensor,
    scales: Tensor,
    gradient: Tensor,
    bits: int,
    step: int,
    rate: float,
    pull: float,
    beta: float,
) -> None:
    """Raise KernelError unless `adaround_step` takes such tensors and numbers."""
    op = "adaround_step"
    checks.plain(op, (up, first, second, weight, base, scales, gradient))
    if up.dim() != 2:
        raise checks.error(op, f"expected rows of numbers (out, in), not {tuple(up.shape)}")
    checks.floating(op, "the weight", weight)
    checks.floating(op, "the gradient", gradient)
    for what, x, dtype in (
        ("V", up, torch.float32),
        ("the first moment", first, torch.float32),
        ("the second moment", second, torch.float32),
        ("the weight", weight, weight.dtype),
        ("the gradient", gradient, gradient.dtype),
        ("the codes", base, torch.int8),
    ):
        if x.dtype != dtype or x.shape != up.shape or not x.is_contiguous():
            wanted = f"contiguous {dtype} {tuple(up.shape)}"
            raise checks.error(op, f"{what} must be {wanted}, not {x.dtype} {tuple(x.shape)}")
    if scales.dtype != torch.float32 or scales.shape != up.shape[:1] or not scales.is_contiguous():
        wanted = f"contiguous float32 {tuple(up.shape[:1])}"
        raise checks.error(op, f"scales must be {wanted}, not {scales.dtype} {tuple(scales.shape)}")
    checks.within(op, "bits", bits, 2, 8)
    checks.within(op, "step", step, 1, MOST_STEPS)
    for what, number in (("the rate", rate), ("the pull", pull)):
        if not 0 <= number <= checks.MOST_SCALE:
            raise checks.error(op, f"{what} must be a finite number of at least 0, not {number}")
    checks.positive(op, "beta", beta)


def fake(
    up: Tensor,
    first: Tensor,
    second: Tensor,
    weight: Tensor,
    base: Tensor,
    scales: Tensor,
    gradient: Tensor,
    bits: int,
    step: int,
    rate: float,
    pull: float,
    beta: float,
) -> None:
    """Nothing is returned."""
    check(up, first, second, weight, base, scales, gradient, bits, step, rate, pull, beta)


register("adaround_step", SCHEMA, reference, fake)
