"""Ask for sizes as far up as they are the same, so that asking is no reason to keep a value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import CONV, DEPTHWISE, GROUP_NORM, LAYER_NORM, LINEAR, QUANTIZE
from qdiff_fx.ir.annotations import value
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

SIZE = torch.ops.aten.sym_size.int


class SameSize(NamedTuple):
    """A question for a size, and who else can answer it."""

    question: fx.Node
    above: fx.Node


class HoistSize(Rule[SameSize]):
    """``size(kernel(x), dim)`` → ``size(x, dim)`` where they are equal, through any number of kernels."""

    targets = frozenset({SIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> SameSize | None:
        *_, last = _same_sizes(*node.args)
        return SameSize(node, last) if last is not node.args[0] else None

    def rewrite(self, gm: fx.GraphModule, found: SameSize) -> str:
        found.question.args = (found.above, found.question.args[1])
        return f"asked of {found.above.name}"


def _same_sizes(source: Any, dim: Any) -> Iterator[fx.Node]:
    """`source` and what it is made of, as long as the size in that dim is the same."""
    above: fx.Node | None = source
    while above is not None:
        yield above
        above = _input_of_same_size(above, dim)


def _input_of_same_size(node: fx.Node, dim: int) -> fx.Node | None:
    given: dict[str, Any] = node.kwargs
    target = node.target
    if target not in (LINEAR, CONV, DEPTHWISE, GROUP_NORM, QUANTIZE, LAYER_NORM):
        return None
    last = value(node).dim() - 1
    dim %= last + 1
    found: fx.Node | None = None
    if target is LINEAR and dim != last:
        found = given["codes"]
    elif target is CONV and dim == 0:
        found = given["codes"][0]
    elif target is DEPTHWISE and dim <= 1:
        found = given["codes"]
    elif target is GROUP_NORM and dim != 1:
        found = given["parts"][0]
    elif target is LAYER_NORM or (target is QUANTIZE and not _halves(given, dim == last)):
        found = given["x"]
    return found


def _halves(quantizer: dict[str, Any], last_dim: bool) -> bool:
    return last_dim and quantizer["activation"] == Activation.GEGLU
