"""One name for each thing the graph can do with layouts and matrix products."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import insert_call, is_op
from qdiff_fx.ir.shapes import positive_dim, size_args, swap_last_two
from qdiff_fx.passes.rule import Rule, replace_node

aten = torch.ops.aten


class ViewToReshape(Rule[fx.Node]):
    """`view(x, sizes)` → `reshape(x, sizes)`: right for every memory layout, so copies made for it can go."""

    targets = frozenset({aten.view.default, aten._unsafe_view.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return _rename(found, aten.reshape.default)


class UnflattenToReshape(Rule[fx.Node]):
    """`unflatten(x, dim, sizes)` → `reshape(x, …)`, for the same reason."""

    targets = frozenset({aten.unflatten.int})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        whole: list[Any] = size_args(call["self"], found)
        at = positive_dim(call["dim"], len(whole))
        whole[at : at + 1] = call["sizes"]
        found.args = (call["self"], whole)
        return _rename(found, aten.reshape.default)


class TransposeToPermute(Rule[fx.Node]):
    """Every transposition → `permute(x, dims)` with dimensions counted from the front."""

    targets = ops.PERMUTATIONS

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        if node.target is aten.permute.default and list(bound(node)["dims"]) == permutation(node):
            return None
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        found.args = (found.args[0], permutation(found))
        found.kwargs = {}
        return _rename(found, aten.permute.default)


class MergePermutes(Rule[fx.Node]):
    """`permute(permute(x, a), b)` → `permute(x, a∘b)`."""

    targets = frozenset({aten.permute.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if is_op(node.args[0], aten.permute.default) else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        inner = operand(found)
        first, then = permutation(inner), permutation(found)
        found.args = (operand(inner), [first[dim] for dim in then])
        return "two permutes merged"


class BmmToMatmul(Rule[fx.Node]):
    """`bmm(a, b)` and `mm(a, b)` → `matmul(a, b)`."""

    targets = frozenset({aten.bmm.default, aten.mm.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return _rename(found, aten.matmul.default)


class BaddbmmToMatmul(Rule[fx.Node]):
    """`baddbmm(c, a, b, beta, alpha)` → `alpha · matmul(a, b) + beta · c`; `c` is not read when beta is 0."""

    targets = frozenset({aten.baddbmm.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call, graph = bound(found), gm.graph
        result = insert_call(graph, found, aten.matmul.default, (call["batch1"], call["batch2"]))
        if call["alpha"] != 1:
            result = insert_call(graph, found, aten.mul.Tensor, (result, call["alpha"]))
        if call["beta"] != 0:
            added = call["self"]
            if call["beta"] != 1:
                added = insert_call(graph, found, aten.mul.Tensor, (added, call["beta"]))
            result = insert_call(graph, found, aten.add.Tensor, (result, added))
        replace_node(found, result)
        return "aten.baddbmm.default → aten.matmul.default"


class SoftmaxToInt(Rule[fx.Node]):
    """`_softmax(x, dim)` → `softmax(x, dim)`, with the dimension counted from the front."""

    targets = ops.SOFTMAXES

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        canonical = node.target is aten.softmax.int and bound(node)["dim"] >= 0
        return None if canonical else node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        dim = positive_dim(call["dim"], value(call["self"]).dim())
        dtype = torch.float32 if call.get("half_to_float") else call.get("dtype")
        extra = () if dtype is None else (dtype,)
        found.args, found.kwargs = (call["self"], dim, *extra), {}
        found.target = aten.softmax.int
        return f"softmax over dimension {dim}"


class NativeBatchNorm(Rule[fx.Node]):
    """`_native_batch_norm_legit_no_training(…)[0]` → `batch_norm(…)`, the spelling export uses itself."""

    targets = frozenset({operator.getitem})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        is_norm = is_op(node.args[0], aten._native_batch_norm_legit_no_training.default)
        return node if is_norm and node.args[1] == 0 else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(operand(found))
        names = ("input", "weight", "bias", "running_mean", "running_var")
        found.args = (*(call[name] for name in names), False, call["momentum"], call["eps"], False)
        return _rename(found, aten.batch_norm.default)


def permutation(node: fx.Node) -> list[int]:
    """The dimensions a transposing call takes its result's dimensions from: `result[i] = input[dims[i]]`."""
    call, rank = bound(node), value(operand(node)).dim()
    if node.target is aten.permute.default:
        return [positive_dim(dim, rank) for dim in call["dims"]]
    if node.target is aten.mT.default:
        return swap_last_two(rank)
    if node.target in (aten.t.default, aten.numpy_T.default):
        return list(reversed(range(rank)))
    if node.target in (aten.movedim.int, aten.movedim.intlist):
        return _moved(call["source"], call["destination"], rank)
    dims = list(range(rank))
    first, second = (positive_dim(dim, rank) for dim in cast("tuple[int, int]", node.args[1:3]))
    if rank:
        dims[first], dims[second] = dims[second], dims[first]
    return dims


def _moved(source: Any, destination: Any, rank: int) -> list[int]:
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    sources = [positive_dim(dim, rank) for dim in sources]
    dims = [dim for dim in range(rank) if dim not in sources]
    for target, dim in sorted((positive_dim(t, rank), s) for t, s in zip(targets, sources)):
        dims.insert(target, dim)
    return dims


def _rename(node: fx.Node, target: torch._ops.OpOverload) -> str:
    before = node.target
    node.target = target
    return f"{before} → {target}"
