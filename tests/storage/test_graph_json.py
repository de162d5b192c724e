"""Graphs as JSON: everything comes back, and nothing but computing operators comes in."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir.annotations import fact, has, path_of, require, set_path, value, value_or_none
from qdiff_fx.ir.facts import Input, Part, QuantizedLayer, StaticQParams, WeightCodes
from qdiff_fx.ir.ops import TABLE, Kind, Operator
from qdiff_fx.quant.qparams import LayerInfo, QParams, TensorSpec
from qdiff_fx.storage.graph_json import graph_to_json
from qdiff_fx.storage.graph_reading import graph_from_json

aten = torch.ops.aten


def through_json(graph: fx.Graph) -> fx.Graph:
    return graph_from_json(json.loads(json.dumps(graph_to_json(graph))))


def small_graph() -> fx.Graph:
    """(x) -> (relu(x) + weight,), with values."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("block.0.weight")
    relu = graph.create_node("call_function", aten.relu.default, (x,), name="relu")
    add = graph.create_node("call_function", aten.add.Tensor, (relu, weight), {"alpha": 2}, name="add")
    graph.output((add,))
    for node in graph.nodes:
        set_path(node, "block.0")
    return graph


def rows(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The small graph as JSON; `changes` replaces entries of the rows by name."""
    described = copy.deepcopy(graph_to_json(small_graph()))
    for row in described:
        row.update(changes.get(row["name"], {}))
    return described


@pytest.mark.parametrize("name", zoo.networks("sd1", "sdxl", "conditioned", "handwritten_sum"))
def test_a_quantized_network_comes_back(name):
    graph = zoo.quantized(name).graph_module.graph
    again = through_json(graph)
    assert [(n.name, n.op, n.target) for n in again.nodes] == [(n.name, n.op, n.target) for n in graph.nodes]
    assert [str(n.args) for n in again.nodes] == [str(n.args) for n in graph.nodes]
    assert [str(n.kwargs) for n in again.nodes] == [str(n.kwargs) for n in graph.nodes]
    for ours, theirs in zip(again.nodes, graph.nodes, strict=True):
        assert path_of(ours) == path_of(theirs)
        for kind in (Input, WeightCodes, StaticQParams, QuantizedLayer):
            assert fact(ours, kind) == fact(theirs, kind)
        assert has(ours, Part) == has(theirs, Part)
        if has(ours, Part):  # which layer it was a part of is not stored
            assert require(ours, Part) == replace(require(theirs, Part), split_of="")


@pytest.mark.parametrize("name", zoo.networks("sd1", "sdxl", "conditioned"))
def test_values_keep_their_types_and_ranks(name):
    graph = zoo.quantized(name).graph_module.graph
    for ours, theirs in zip(through_json(graph).nodes, graph.nodes, strict=True):
        expected = value_or_none(theirs)
        if expected is not None:
            assert value(ours).dtype == expected.dtype
            assert len(value(ours).shape) == len(expected.shape)


words = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=5)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | words
enums = st.sampled_from([torch.float32, torch.int8, torch.channels_last, torch.strided, torch.device("cpu")])
slices = st.builds(slice, st.none() | st.integers(), st.none() | st.integers(), st.none() | st.integers(1, 3))
arguments = st.recursive(plain | enums | slices, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner))


def output_of(value: Any) -> Any:
    """What a graph returns that was written and read again. What calls may be given depends on what they call."""
    graph = fx.Graph()
    graph.output(value)
    return through_json(graph).output_node().args[0]


@given(arguments)
def test_any_argument_comes_back(value):
    graph = fx.Graph()
    graph.output(value)
    assert repr(output_of(value)) == repr(graph.output_node().args[0])


def test_numbers_that_json_lacks():
    found = output_of((math.inf, -math.inf, math.nan))
    assert found[:2] == (math.inf, -math.inf)
    assert math.isnan(found[2])


def test_layers_and_their_measured_outputs_come_back():
    info = LayerInfo("a.b[0:3]", "conv", 4, 8, 0, "", QParams(TensorSpec(8), (0.1, 1e-30), (3, 255)))
    assert LayerInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


class TestWhatIsSaved:
    def test_an_operator_of_somebody_else(self):
        graph = fx.Graph()
        graph.output(graph.call_function(torch.ops.onednn.qlinear_prepack.default, (graph.placeholder("x"), None)))
        with pytest.raises(
            ArtifactError, match=r"node qlinear_prepack\w*: onednn.* is not an operator that can be saved"
        ):
            graph_to_json(graph)

    def test_a_python_function(self):
        graph = fx.Graph()
        graph.output(graph.call_function(print, (graph.placeholder("x"),)))
        with pytest.raises(ArtifactError, match="print.* is not an operator that can be saved"):
            graph_to_json(graph)

    @pytest.mark.parametrize("target", [aten.special_bessel_j0.default, aten.empty_like.default, aten.relu_.default])
    def test_an_operator_without_a_row_or_one_that_may_not(self, target):
        graph = fx.Graph()
        graph.output(graph.call_function(target, (graph.placeholder("x"),)))
        with pytest.raises(ArtifactError, match=rf"node \w+: {target} is not an operator that can be saved.*ir/ops"):
            graph_to_json(graph)

    def test_an_argument_of_another_kind(self):
        graph = fx.Graph()
        graph.output(graph.call_function(aten.relu.default, (object,)))
        with pytest.raises(ArtifactError, match="an argument of type type cannot be saved"):
            graph_to_json(graph)


class TestWhatIsRefused:
    """Somebody wrote the file by hand, checksums and all."""

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "operator.call",
            "operator.attrgetter",
            "torch.load",
            "onednn.qlinear_prepack.default",
            "aten.save.default",
            "aten.from_file.default",
            "aten.relu_.default",
            "aten.copy_.default",
            "aten.relu.out",
            "aten.relu.__class__",
            "aten.__class__.mro",
            # Not random but whatever memory holds, or lies outside what was given.
            "aten.empty.memory_format",
            "aten.empty_like.default",
            "aten._sparse_coo_tensor_unsafe.default",
            "aten.segment_reduce.default",
            "aten._unsafe_index.Tensor",
            "aten._print.default",
            "aten._assert_async.msg",
            "qdiff.int_conv.default",
            "prims.convert_element_type.default",
        ],
    )
    def test_operators_that_do_more_than_compute(self, target):
        with pytest.raises(ArtifactError, match="not an operator that may be loaded"):
            graph_from_json(rows(relu={"target": target}))

    def test_an_operator_this_torch_does_not_have(self, monkeypatch):
        invented = Operator("aten.invented.default", Kind.POINTWISE)
        monkeypatch.setitem(TABLE, invented.name, invented)
        with pytest.raises(
            ArtifactError, match=r"no operator 'aten.invented.default'.*Use the torch it was saved with"
        ):
            graph_from_json(rows(relu={"target": "aten.invented.default"}))

    @pytest.mark.parametrize("training", [True, 1, {"node": "x"}])
    @pytest.mark.parametrize(
        ("target", "flag"), [("aten.batch_norm.default", "training"), ("aten.instance_norm.default", "use_input_stats")]
    )
    def test_a_norm_that_writes_its_statistics(self, target, flag, training):
        node = {"node": "x"}
        call = {"target": target, "args": [node, node, node, node, node, training, 0.1, 1e-5, False]}
        reason = f"{target} with {flag} writes into its running_mean|its {flag} is .*, not a usual bool"
        with pytest.raises(ArtifactError, match=f"node relu.*({reason})"):
            graph_from_json(rows(relu=call))

    @pytest.mark.parametrize("statistics", [False, True])
    def test_a_norm_that_only_reads_them_or_has_none(self, statistics):
        node = {"node": "x"}
        mean = node if statistics else None
        call = {"target": "aten.batch_norm.default"}
        call |= {"args": [node, node, node, mean, mean, not statistics, 0.1, 1e-5, False]}
        assert [n.target for n in graph_from_json(rows(relu=call)).nodes][2] is aten.batch_norm.default

    @pytest.mark.parametrize(
        ("node", "change"),
        [
            ("x", {"target": "x, y=__import__('os').abort()"}),
            ("x", {"target": "lambda"}),
            ("x", {"name": "x; 1/0"}),
            ("relu", {"kwargs": {"a=__import__('os').abort(), b": 1}}),
            ("block_0_weight", {"target": 'block."), __import__("os").abort(), ("'}),
            ("block_0_weight", {"target": "block\n1/0"}),
            ("block_0_weight", {"target": "block\\"}),
        ],
    )
    def test_names_that_are_code(self, node, change):
        with pytest.raises(ArtifactError, match="is not a name|is not the path of a tensor|not a line of text"):
            graph_from_json(rows(**{node: change}))

    @pytest.mark.parametrize(
        ("node", "change"),
        [
            ("x", {"op": "call_module"}),
            ("x", {"op": "call_method"}),
            ("relu", {"args": [{"node": "nowhere"}]}),
            ("relu", {"args": [{"dtype": "load"}]}),
            ("relu", {"args": [{"dtype": "nn"}]}),
            ("relu", {"args": [{"invented": 1}]}),
            ("relu", {"args": [{"dtype": "int8", "node": "x"}]}),
            ("relu", {"args": 3}),
            ("relu", {"args": [{"device": "warp9"}]}),
            ("relu", {"val": ["float32", [-1]]}),
            ("relu", {"val": ["float32"]}),
            ("relu", {"layer": {"path": ""}}),
            ("relu", {"layer": {"path": "", "output": None, "kind": "conv", "invented": 1}}),
            ("relu", {"target": 3}),
            ("relu", {"name": None}),
        ],
    )
    def test_rows_that_make_no_sense(self, node, change):
        with pytest.raises(ArtifactError):
            graph_from_json(rows(**{node: change}))

    @pytest.mark.parametrize("content", [None, 3, "nodes", {"a": 1}, [3], [None], [[]]])
    def test_anything_else(self, content):
        with pytest.raises(ArtifactError):
            graph_from_json(content)

    @given(st.data())
    def test_rows_with_something_missing(self, data):
        described = rows()
        row = data.draw(st.sampled_from(described))
        del row[data.draw(st.sampled_from(["name", "op", "target", "args"]))]
        with pytest.raises(ArtifactError):
            graph_from_json(described)
