"""Ask for sizes as far up as they are the same, so that asking is no reason to keep a value."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.layers import CONV, GROUP_NORM, LAYER_NORM, LINEAR, QUANTIZE, named
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.integer import Activation

SIZE = torch.ops.aten.sym_size.int


def ask_inputs_for_sizes(gm: fx.GraphModule) -> None:
    """``size(kernel(x), dim)`` becomes ``size(x, dim)`` where they are equal, in place."""
    for size in [n for n in gm.graph.nodes if is_op(n, SIZE)]:
        source, dim = size.args
        while True:
            above = _same_size(source, dim % source.meta["val"].dim())
            if above is None:
                break
            source = above
        size.args = (source, dim)


def _same_size(node: fx.Node, dim: int) -> fx.Node | None:
    """The input of a kernel that has the same size in that dim."""
    last = node.meta["val"].dim() - 1
    if is_op(node, LINEAR) and dim != last:
        return named(node)["codes"]  # type: ignore[no-any-return]
    if is_op(node, CONV) and dim == 0:
        return named(node)["codes"][0]  # type: ignore[no-any-return]
    if is_op(node, GROUP_NORM) and dim != 1:
        return named(node)["parts"][0]  # type: ignore[no-any-return]
    gated = is_op(node, QUANTIZE) and named(node)["activation"] == Activation.GEGLU and dim == last
    if is_op(node, QUANTIZE, LAYER_NORM) and not gated:
        return named(node)["x"]  # type: ignore[no-any-return]
    return None
