"""One spelling per convolution: its own op, numeric padding, every argument written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound
from qdiff_fx.ir.edit import insert_call
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten

_PER_DIMENSION = ("stride", "padding", "output_padding", "dilation")


class ConvolutionToConv(Rule[fx.Node]):
    """`convolution(x, w, …, transposed, …)` → `conv2d` or `conv_transpose2d` of the input's rank."""

    targets = frozenset({aten.convolution.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        rank = value(call["weight"]).dim() - 2
        found.target = (ops.TRANSPOSED_CONVS if call["transposed"] else ops.CONVS)[rank]
        found.args, found.kwargs = _full_arguments(found.target, call, rank), {}
        return f"aten.convolution.default → {found.target}"


class NumericPadding(Rule[fx.Node]):
    """`padding="same"` or `"valid"` → numbers; an odd total is padded beforehand, one more at the far end."""

    targets = ops.WORDED_PADDING

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        rank = value(call["weight"]).dim() - 2
        before = call["padding"]
        totals = _total_padding(call, rank)
        if all(total % 2 == 0 for total in totals):
            call["padding"] = [total // 2 for total in totals]
        else:
            ends = [end for total in reversed(totals) for end in (total // 2, total - total // 2)]
            call["input"] = insert_call(gm.graph, found, aten.pad.default, (call["input"], ends))
            call["padding"] = [0] * rank
        found.target = ops.CONVS[rank]
        found.args, found.kwargs = _full_arguments(found.target, call, rank), {}
        return f'padding "{before}" → {totals} in all'


class FullConvArguments(Rule[fx.Node]):
    """`conv2d(x, w)` → `conv2d(x, w, None, [1, 1], [0, 0], [1, 1], 1)`."""

    targets = frozenset({*ops.CONVS.values(), *ops.TRANSPOSED_CONVS.values()})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return None if not node.kwargs and _written_out(node.args) == self._full(node) else node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        found.args, found.kwargs = self._full(found), {}
        return "every argument written out"

    def _full(self, node: fx.Node) -> tuple[Any, ...]:
        return _full_arguments(node.target, bound(node), value(bound(node)["weight"]).dim() - 2)


def _full_arguments(target: Any, call: dict[str, Any], rank: int) -> tuple[Any, ...]:
    """The arguments in the order of the target's schema; one number for all dimensions is repeated."""
    values = {name: _repeated(call[name], rank) for name in _PER_DIMENSION if name in call}
    return tuple((call | values)[parameter.name] for parameter in target._schema.arguments)


def _repeated(sizes: Any, rank: int) -> list[Any]:
    each = [sizes] if isinstance(sizes, int) else list(sizes)
    return each * rank if len(each) == 1 else each


def _written_out(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """fx stores lists in a type of its own; plain ones compare as expected."""
    return tuple(list(arg) if isinstance(arg, list | tuple) else arg for arg in args)


def _total_padding(call: dict[str, Any], rank: int) -> list[int]:
    if call["padding"] == "valid":
        return [0] * rank
    kernel = value(call["weight"]).shape[2:]
    return [d * (k - 1) for d, k in zip(_repeated(call["dilation"], rank), kernel)]
