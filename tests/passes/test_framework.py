import copy

import pytest
import torch
from torch import fx

from qdiff_fx.errors import ConfigError, PassError
from qdiff_fx.ir.properties import properties
from qdiff_fx.passes.framework import Change, Pass, PassReport, Refusal, checks, run_passes

aten = torch.ops.aten


@checks("free of relu")
def find_relus(gm: fx.GraphModule) -> list[str]:
    return [f"{node.name} is a relu" for node in gm.graph.nodes if node.target is aten.relu.default]


class Note(Pass):
    """Does nothing but say so."""

    def __init__(self, name, requires=(), ensures=(), breaks=()):
        self.name = name
        self.requires, self.ensures, self.breaks = map(frozenset, (requires, ensures, breaks))

    def run(self, gm):
        return PassReport(self.name)


class Swap(Note):
    """Turns every `before` into `after`."""

    def __init__(self, name, before, after, **properties):
        super().__init__(name, **properties)
        self.before, self.after = before, after

    def run(self, gm):
        found = [node for node in gm.graph.nodes if node.target is self.before]
        for node in found:
            node.target = self.after
        return PassReport(self.name, tuple(Change(node.name, "", "swapped") for node in found))


class Fail(Note):
    def __init__(self, error):
        super().__init__("fail")
        self.error = error

    def run(self, gm):
        raise self.error


@pytest.fixture
def graph(export):
    return export(lambda x: torch.relu(x), torch.randn(2, 3))


def test_reports_come_back_in_order_and_the_graph_is_recompiled(graph, call):
    x = torch.randn(2, 3)
    reports = run_passes(graph, [Note("first"), Swap("second", aten.relu.default, aten.sigmoid.default)])
    assert [report.name for report in reports] == ["first", "second"]
    assert [change.node for change in reports[1].changed] == ["relu"]
    torch.testing.assert_close(call(graph, x), x.sigmoid())


def test_a_missing_requirement_names_the_pass_and_those_before_it(graph):
    with pytest.raises(PassError, match=r"pass second \(after first\): the graph is not b\."):
        run_passes(graph, [Note("first", ensures=["a"]), Note("second", requires=["a", "b"])])
    with pytest.raises(PassError, match=r"pass second \(run first\): the graph is not c"):
        run_passes(graph, [Note("second", requires=["c"])])


def test_a_promise_is_checked_on_the_result(graph):
    promise = {"ensures": ["free of relu"]}
    with pytest.raises(PassError, match=r"pass lazy \(run first\): the result is not free of relu: relu is a"):
        run_passes(graph, [Note("lazy", **promise)])
    run_passes(graph, [Swap("busy", aten.relu.default, aten.sigmoid.default, **promise)])
    assert "free of relu" in properties(graph)


def test_a_later_pass_may_not_break_an_earlier_promise_silently(graph):
    run_passes(graph, [Swap("away", aten.relu.default, aten.sigmoid.default, ensures=["free of relu", "tidy"])])
    back = Swap("back", aten.sigmoid.default, aten.relu.default)
    with pytest.raises(PassError, match=r"pass back \(run first\): the result is not free of relu"):
        run_passes(copy.deepcopy(graph), [back])
    back.breaks = frozenset({"free of relu"})
    run_passes(graph, [back])
    assert properties(graph) == {"tidy"}


def test_properties_of_a_copy_are_its_own(graph):
    duplicate = copy.deepcopy(graph)
    run_passes(duplicate, [Note("first", ensures=["a"])])
    assert properties(duplicate) == {"a"}
    assert properties(graph) == frozenset()


def test_an_exception_inside_a_pass_says_which(graph):
    with pytest.raises(PassError, match=r"pass fail \(after first\): IndexError: nothing there") as caught:
        run_passes(graph, [Note("first"), Fail(IndexError("nothing there"))])
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_error_on_purpose_passes_unchanged(graph):
    error = ConfigError("no layer is called so")
    with pytest.raises(ConfigError) as caught:
        run_passes(graph, [Fail(error)])
    assert caught.value is error


def test_an_invalid_graph_is_reported(graph):
    class Disorder(Note):
        def run(self, gm):
            relu = next(node for node in gm.graph.nodes if node.op == "call_function")
            next(node for node in gm.graph.nodes if node.op == "output").append(relu)
            return PassReport(self.name)

    with pytest.raises(PassError, match="pass disorder"):
        run_passes(graph, [Disorder("disorder")])


def test_a_report_reads_as_text():
    report = PassReport("p", (Change("conv", "up.0", "split"),), (Refusal("linear", "", "too small"),))
    assert str(report) == "p: 1 changed, 1 refused\n  + up.0 (conv): split\n  - . (linear): too small"
