"""The operator table holds together, agrees with torch, and is the only one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import fx

import qdiff_fx.kernels  # noqa: F401, registers the operators that are not aten's
from qdiff_fx.ir import ops
from qdiff_fx.ir.ops import Channels, Kind, Layout, NoOp, Operator, table

aten = torch.ops.aten
ROOT = Path(__file__).parents[2] / "qdiff_fx"
OPERATORS = [row for row in ops.TABLE.values() if row.namespace in ("aten", "quantized_decomposed", "qdiff", "onednn")]


def schema(row: Operator) -> torch.FunctionSchema:
    target = ops.resolve(row)
    assert isinstance(target, torch._ops.OpOverload)
    return target._schema


def test_an_operator_has_one_row():
    written = [row.name for family in table._FAMILIES for row in family.ROWS]
    assert len(written) == len(set(written)) == len(ops.TABLE)


def test_each_exists_in_this_torch_and_is_found_by_what_it_calls():
    targets = {row.name: ops.resolve(row) for row in ops.TABLE.values()}
    assert [name for name, target in targets.items() if target is None] == []
    assert [name for name, target in targets.items() if ops.row_of(target) is not ops.TABLE[name]] == []


def test_what_may_be_stored_writes_nowhere_and_names_no_file():
    for row in (row for row in OPERATORS if row.stored):
        names = {argument.name for argument in schema(row).arguments}
        # What has no kernel is a function of TorchScript.
        assert torch._C._dispatch_has_kernel(ops.resolve(row).name()), row.name
        assert not schema(row).is_mutable, row.name
        assert not names & {"filename", "out", "unsafe"}, row.name
        assert row.namespace in ("aten", "quantized_decomposed", "qdiff"), row.name


def contradictions(row: Operator) -> Iterator[str]:
    if (row.channels is Channels.KEPT_BY_ALL) != (torch.Tag.pointwise in ops.resolve(row).tags):
        yield "torch has another opinion on whether it is pointwise"
    if (row.layout is Layout.PERMUTATION) != (row.channels is Channels.PERMUTED):
        yield "a permutation permutes channels, and nothing else does"
    if (row.kind is Kind.PADDING) != (row.channels is Channels.PADDED):
        yield "padding pads channels, and nothing else does"
    if (row.layout is Layout.NEW) == (row.kind in (Kind.LAYOUT, Kind.PADDING)):
        yield "it computes and moves"
    if (row.layout is Layout.RESHAPE) != (row.noop is NoOp.SAME_SHAPE):
        yield "a reshape to the same shape is no reshape"
    if (row.layout in (Layout.ALIAS, Layout.COPY, Layout.CAST)) != (row.noop is NoOp.SAME_TYPE):
        yield "what neither moves nor computes may go when the type stays"
    if row.layer is not None and row.canonical:
        yield "a layer is spelled as another"
    if row.canonical and ops.TABLE[row.canonical].canonical:
        yield "its one spelling has another spelling"
    if row.kind is Kind.ASSERTION and row.stored:
        yield "an assertion computes nothing that could be stored"
    random = torch.Tag.nondeterministic_seeded in ops.resolve(row).tags
    if random != (row.kind in (Kind.RANDOM, Kind.DROPOUT) or row.name.startswith("aten.scaled_dot")):
        yield "torch has another opinion on whether it is random"


def test_facts_do_not_contradict_each_other():
    assert [(row.name, *found) for row in OPERATORS if (found := list(contradictions(row)))] == []


def test_contradictions_are_seen():
    relu = Operator("aten.relu.default", Kind.LAYOUT, Channels.PADDED, stored=False)
    assert len(list(contradictions(relu))) == 3


def test_the_arguments_a_row_names_exist():
    for row in OPERATORS:
        named = {*row.sizes_only} | ({row.writes.flag, row.writes.statistics} if row.writes else set())
        assert named <= {argument.name for argument in schema(row).arguments}, row.name


class TestConvolutions:
    def test_layers_are_found_by_their_dimensions(self):
        assert {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default} == ops.CONVS
        assert ops.TRANSPOSED_CONVS[2] is aten.conv_transpose2d.input
        assert len(ops.WEIGHT_LAYERS) == 7

    def test_only_words_for_padding_are_another_spelling(self):
        assert ops.spellings(aten.conv2d.default) == {aten.conv2d.default, aten.conv2d.padding}


def call(target: object, *args: object) -> fx.Node:
    graph = fx.Graph()
    x, like = graph.placeholder("x"), graph.placeholder("like")
    known = {"x": x, "like": like}
    return graph.call_function(target, tuple(known.get(arg, arg) if isinstance(arg, str) else arg for arg in args))


@pytest.mark.parametrize(
    ("target", "args", "read"),
    [
        (aten.expand_as.default, ("x", "like"), ["x"]),
        (aten.zeros_like.default, ("like",), []),
        (aten.new_full.default, ("like", [2], 1.0), []),
        (aten.add.Tensor, ("x", "like"), ["x", "like"]),
        (aten.special_bessel_j0.default, ("x",), ["x"]),  # without a row
    ],
)
def test_what_is_read_for_its_size_alone_is_not_read_by_value(target, args, read):
    assert [node.name for node in ops.read_by_value(call(target, *args))] == read


@pytest.mark.parametrize(
    ("target", "known"),
    [
        (aten.special_bessel_j0.default, Channels.KEPT_BY_ALL),
        (aten.grid_sampler.default, Channels.UNFOLLOWED),
        (len, Channels.UNFOLLOWED),
    ],
)
def test_of_an_operator_without_a_row_torch_knows_whether_it_is_pointwise(target, known):
    assert ops.row_of(target) is None
    assert ops.channels_of(target) is known


OPERATOR = re.compile(r"(torch\.ops\.)?(aten|qd|quantized_decomposed|qdiff|onednn)\.\w+\.\w+")
# A file with a list of three operators or more of its own, and why.
LISTS_OF_THEIR_OWN = {
    # What the kernels of this package are called from Python.
    "backends/native/fusion/kernels.py",
    # How large each operator makes values, and of which arguments that depends.
    "backends/native/fusion/magnitude.py",
    # What each of torch's quantizers is in ONNX.
    "export/onnx_quantizers.py",
}


def lists_of_operators(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Line and members of every literal collection, and of every call of `is_op`, that holds operators."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            inside: list[ast.expr] = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            inside = node.elts
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "is_op":
            inside = node.args
        else:
            continue
        found = {ast.unparse(each) for part in inside for each in ast.walk(part) if isinstance(each, ast.Attribute)}
        yield node.lineno, {name for name in found if OPERATOR.fullmatch(name)}


def test_the_scan_sees_a_list():
    source = "A = frozenset({aten.relu.default, *B, aten.silu.default, torch.ops.aten.gelu.default})"
    assert [len(members) for _, members in lists_of_operators(ast.parse(source))] == [3]


def test_nobody_else_keeps_a_list_of_operators():
    """Ask ops for the set, or give its operators a trait there."""
    found = {
        file.relative_to(ROOT).as_posix()
        for file in ROOT.rglob("*.py")
        if not file.is_relative_to(ROOT / "ir" / "ops")
        and any(len(members) >= 3 for _, members in lists_of_operators(ast.parse(file.read_text())))
    }
    assert found <= LISTS_OF_THEIR_OWN
