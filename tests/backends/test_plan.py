"""Plans: the same values as the nodes one by one, whatever their arguments are, and refusals."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from qdiff_fx.backends.native.runtime.program import _pieces, compile_graph
from qdiff_fx.ir.edit import add_buffer
from qdiff_fx.kernels import status
from qdiff_fx.kernels.plan import Plan

pytestmark = pytest.mark.skipif(not status().available, reason=status().reason or "-")
aten = torch.ops.aten


def module(graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def plan_sizes(gm: fx.GraphModule) -> list[int]:
    return [len(piece) for piece in _pieces(gm.graph) if isinstance(piece, list)]


def test_every_kind_of_argument():
    graph = fx.Graph()
    x = graph.placeholder("x")
    rows = graph.call_function(aten.sym_size.int, (x, 0))
    half = graph.call_function(operator.floordiv, (rows, 2))
    split = graph.call_function(aten.reshape.default, (x, [half, 2, -1]))
    width = graph.call_function(aten.sym_size.int, (split, 2))
    flat = graph.call_function(aten.reshape.default, (split, [rows, width]))
    both = graph.call_function(aten.cat.default, ([flat, x],), {"dim": 1})
    bounded = graph.call_function(aten.clamp.default, (both, -0.5), {"max": 1})
    less = graph.call_function(aten.sub.Tensor, (bounded, both), {"alpha": 0.25})
    wide = graph.call_function(aten.to.dtype, (less, torch.float64))
    graph.output((graph.call_function(aten.mean.dim, (wide, [1], True)), wide))
    gm = module(graph)
    assert plan_sizes(gm) == [4, 2]  # numbers that may be whole or not are passed by Python
    value = torch.randn(6, 5)
    for found, expected in zip(compile_graph(gm)(value), gm(value), strict=True):
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)


def test_constants_and_results_read_in_python():
    graph = fx.Graph()
    x = graph.placeholder("x")
    gm = fx.GraphModule(torch.nn.Module(), fx.Graph())
    weight = graph.get_attr(add_buffer(gm, "weight", torch.randn(4, 5)))
    first = graph.call_function(aten.linear.default, (x, weight, None))
    second = graph.call_function(aten.relu.default, (first,))
    pair = graph.call_function(operator.mul, (second, second))
    third = graph.call_function(aten.neg.default, (pair,))
    graph.output((third, first))
    gm.graph = graph
    assert plan_sizes(gm) == [2, 1]
    value = torch.randn(3, 5)
    for found, expected in zip(compile_graph(gm)(value), gm(value), strict=True):
        assert torch.equal(found, expected)


def test_python_waits_only_for_what_it_reads():
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    first = graph.call_function(aten.relu.default, (x,))
    aside = graph.call_function(operator.mul, (y, 2))
    second = graph.call_function(aten.mul.Tensor, (first, aside))
    graph.output((second,))
    gm = module(graph)
    assert plan_sizes(gm) == [2]
    value = torch.randn(3)
    assert torch.equal(compile_graph(gm)(value, value)[0], gm(value, value)[0])


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.add.Tensor, (1.5,)),  # a number where a tensor is taken
        (aten.relu_.default, ()),  # writes to its input
        (aten.chunk.default, (2,)),  # several results
        (aten.contiguous.default, ()),
    ],
)
def test_what_is_not_planned_runs_all_the_same(target, args):
    graph = fx.Graph()
    x = graph.placeholder("x")
    kwargs = {"memory_format": torch.channels_last} if target is aten.contiguous.default else {}
    graph.output((graph.call_function(target, (x, *args), kwargs),))
    gm = module(graph)
    assert plan_sizes(gm) == []
    (found,), (expected,) = compile_graph(gm)(torch.ones(2, 4, 3, 3)), gm(torch.ones(2, 4, 3, 3))
    torch.testing.assert_close(found, expected)


def test_errors_of_operators_arrive():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.reshape.default, (x, [3, 3])),))
    with pytest.raises(RuntimeError, match="invalid for input of size 4"):
        compile_graph(module(graph))(torch.ones(2, 2))


class TestRefusals:
    def plan(self, slots: int = 2):
        return Plan(slots)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ([], "argument 1 is not given"),
            ([1], "cut off"),
            ([1, 7], "refers to nothing"),
            ([9], "no such kind"),
            ([1, 0, 1, 0], "more arguments"),
            ([6, 0], "a list where"),
        ],
    )
    def test_malformed_arguments(self, code: list[int], message: str):
        with pytest.raises(RuntimeError, match=message):
            self.plan().add(aten.relu.default, code, [], [], 1, [])

    def test_slots_that_are_not_there(self):
        with pytest.raises(RuntimeError, match="no slot 5"):
            self.plan().add(aten.relu.default, [1, 0], [], [], 5, [])
        with pytest.raises(RuntimeError, match="more inputs than slots"):
            self.plan().run([Tensor()] * 3, [], [], [])

    def test_an_unknown_operator(self):
        plan = self.plan()
        torch.ops.qdiff_native.plan_add(plan._number, "aten::no_such_thing", "", [0], [], [], [], 1, [])
        with pytest.raises(RuntimeError, match="no_such_thing"):
            plan.run([], [], [], [])


class Watched(TorchDispatchMode):
    """Notes what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.seen.append(str(op))
        return op(*args, **(kwargs or {}))


def test_it_is_deleted_whatever_torch_is_doing():
    """Garbage is collected at any moment: also in a capture, whose mode would take it for a part of it."""
    plan = Plan(1)
    number, delete = plan._number, plan._delete
    with Watched() as mode:
        del plan
    assert mode.seen == []
    assert number is not None
    assert delete is not None
    with pytest.raises(RuntimeError, match="plan"):
        torch.ops.qdiff_native.plan_run(number, [], [], [], [])
