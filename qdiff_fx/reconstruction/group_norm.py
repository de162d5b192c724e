"""Group normalisation that can be differentiated whatever layout a gradient arrives in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _KeepLayout(torch.autograd.Function):
    """Identity whose gradient has the layout of the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.layout = layout_of(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=ctx.layout)


def group_norm(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """`aten.group_norm`. Its own backward on CPU reads out of bounds where the gradient is laid out unlike x."""
    x = x.contiguous(memory_format=layout_of(x))
    return _KeepLayout.apply(torch.ops.aten.group_norm.default(x, *arguments, **options))


def layout_of(x: Tensor) -> torch.memory_format:
    """Channels last where x is an image laid out so, contiguous otherwise."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
