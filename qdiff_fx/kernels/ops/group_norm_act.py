"""Group norm over tensors side by side, an activation and a quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import OF_NORMS
from qdiff_fx.kernels.epilogue import QUANTIZER, finish
from qdiff_fx.kernels.registration import register

SCHEMA = (
    f"(Tensor[] parts, int groups, Tensor? weight, Tensor? bias, float epsilon, int activation, {QUANTIZER}) -> Tensor"
)


def reference(
    parts: Sequence[Tensor],
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    activation: int,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    """``quantize(act(group_norm(cat(parts, 1))))``; parts are floating (N, C_i, ...)."""
    op = "group_norm_act"
    checks.plain(op, (*parts, weight, bias))
    check(parts, groups, activation, out_dtype)
    channels = sum(part.shape[1] for part in parts)
    checks.vector(op, "the weight", weight, channels)
    checks.vector(op, "the bias", bias, channels)
    checks.epsilon(op, epsilon)
    checks.quantizer(op, out_dtype, scale, zero_point, low, high)

    joined = torch.cat([part.float() for part in parts], 1)
    # Not that of nn.functional, which refuses groups of one value.
    normed = torch.group_norm(joined, groups, weight, bias, epsilon) if joined.numel() else joined
    return finish(normed, None, activation, out_dtype, scale, zero_point, low, high)


def check(parts: Sequence[Tensor], groups: int, activation: int, out_dtype: torch.dtype) -> None:
    """Raise KernelError unless `group_norm_act` takes such parts."""
    op = "group_norm_act"
    if not 1 <= len(parts) <= checks.MOST_PARTS:
        raise checks.error(op, f"expected 1 to {checks.MOST_PARTS} parts, not {len(parts)}")
    first = parts[0]
    for part in parts:
        checks.floating(op, "a part", part)
        if part.dim() < 2 or part.shape[1] == 0:
            raise checks.error(op, f"parts must be (N, C, ...), not {tuple(part.shape)}")
        if (part.shape[0], *part.shape[2:]) != (first.shape[0], *first.shape[2:]):
            shapes = f"{tuple(first.shape)} and {tuple(part.shape)}"
            raise checks.error(op, f"parts {shapes} differ in more than channels")
    channels = sum(part.shape[1] for part in parts)
    if groups < 1 or channels % groups:
        raise checks.error(op, f"{channels} channels do not make {groups} groups")
    checks.sizes(op, (first.shape[0], channels, *first.shape[2:]))
    checks.activation(op, activation, OF_NORMS)
    checks.out_dtype(op, out_dtype)


def fake(parts: Sequence[Tensor], *args: Any) -> Tensor:
    """Channels last, like the result."""
    groups, activation, out_dtype = args[0], *args[4:6]
    check(parts, groups, activation, out_dtype)
    first = parts[0]
    sizes = (first.shape[0], *first.shape[2:], sum(part.shape[1] for part in parts))
    return first.new_empty(sizes, dtype=out_dtype).movedim(-1, 1)


register("group_norm_act", SCHEMA, reference, fake)
