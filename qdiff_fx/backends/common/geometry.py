"""The convolutions integer kernels may take, and how they move over the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qdiff_fx.ir import ops

# Operator -> dims of its image.
CONVS: dict[object, int] = {target: dims for dims, target in ops.CONVS.items() if dims <= 2}
VOLUME_CONV = ops.CONVS[3]
TRANSPOSED_CONVS: dict[Any, int] = {target: dims for dims, target in ops.TRANSPOSED_CONVS.items() if dims <= 2}


def conv_geometry(layer: fx.Node, dims: int) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups; arguments left out at the end have their defaults."""
    given: list[Any] = [*layer.args[3:]]
    stride, padding, dilation, groups = given + [[1], [0], [1], 1][len(given) :]
    return _expand(stride, dims), _expand(padding, dims), _expand(dilation, dims), groups


@dataclass(frozen=True)
class Axis:
    """How a transposed convolution moves along one dimension of its image.

    ``out[stride * i - padding + dilation * k] += weight[k] * x[i]``, and `extra` more places at the end.
    """

    kernel: int
    stride: int
    padding: int
    extra: int
    dilation: int


def transposed_axes(layer: fx.Node, kernel: Sequence[int]) -> tuple[Axis, ...]:
    """Those of a transposed convolution whose kernel has these sizes."""
    given: list[Any] = [*layer.args[3:]]
    stride, padding, extra, _, dilation = given + [[1], [0], [0], 1, [1]][len(given) :]
    columns = (_expand(each, len(kernel)) for each in (stride, padding, extra, dilation))
    return tuple(Axis(*numbers) for numbers in zip(kernel, *columns, strict=True))


def _expand(value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
