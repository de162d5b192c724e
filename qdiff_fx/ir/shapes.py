"""Questions about the fake values the nodes carry; a symbolic size counts only when it is provable."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import fx

from qdiff_fx.ir.annotations import value, value_or_none
from qdiff_fx.ir.edit import insert_call


def is_tensor(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` is an fx node whose value is one tensor."""
    return isinstance(node, fx.Node) and value_or_none(node) is not None


def same_sizes(left: Any, right: Any) -> bool:
    """Whether two shapes are equal for every batch and image size."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings all of sympy

    return len(left) == len(right) and all(statically_known_true(a == b) for a, b in zip(left, right))


def same_shape(left: fx.Node, right: fx.Node) -> bool:
    """Whether two nodes have the same shape for every batch and image size."""
    return same_sizes(value(left).shape, value(right).shape)


def same_dtype_and_device(left: fx.Node, right: fx.Node) -> bool:
    """Whether two nodes hold elements of the same kind on the same device."""
    a, b = value(left), value(right)
    return a.dtype == b.dtype and a.device == b.device


def positive_dim(dim: int, rank: int) -> int:
    """`dim` counted from the front."""
    return dim % rank if rank else 0


def swap_last_two(rank: int) -> list[int]:
    """The permutation that transposes matrices: `[0, …, rank - 1, rank - 2]`."""
    return [*range(rank - 2), rank - 1, rank - 2]


def size_args(node: fx.Node, before: fx.Node) -> list[int | fx.Node]:
    """The sizes of `node` as arguments of a call: integers, and aten.sym_size nodes where they are symbolic."""
    sizes: list[int | fx.Node] = []
    for dim, size in enumerate(value(node).shape):
        if isinstance(size, int):
            sizes.append(size)
        else:
            sizes.append(insert_call(before.graph, before, torch.ops.aten.sym_size.int, (node, dim)))
    return sizes
