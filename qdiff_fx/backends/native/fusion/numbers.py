"""Scales and zero-points as plain numbers, looked up once per step."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdiff_fx.backends.common.base import ATTENTION
from qdiff_fx.ir.edit import get_attr_tensor, is_op

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
TIMESTEP_BIN = torch.ops.qdiff.timestep_bin.default
MODULE = "numbers_of_the_step"

TENSOR_QUANTIZE = {
    qd.quantize_per_tensor.tensor: qd.quantize_per_tensor.default,
    qd.dequantize_per_tensor.tensor: qd.dequantize_per_tensor.default,
}
ATTENTION_NUMBERS = torch.ops.qdiff.int_attention_vnni.numbers
ATTENTION_ARGUMENTS = (
    *("q", "k", "v", "mask", "q_scale", "q_zero_point", "k_scale", "v_scale"),
    *("softmax_scale", "prob_bits", "out_dtype"),
)
NO_OUTPUT_QUANTIZER = {"out_scale": 1.0, "out_zero_point": 0, "out_low": 0, "out_high": 0}


class StepNumbers(nn.Module):
    """``forward(bin)``: row `bin` of every table, as Python numbers.

    A kernel that takes a number needs no tensor to be made, looked up and read.
    """

    def __init__(self, tables: list[Tensor]):
        super().__init__()
        self.rows = list(zip(*(table.tolist() for table in tables), strict=True))

    def forward(self, index: Tensor) -> tuple[float | int, ...]:
        return self.rows[int(index)]


def numbers_from_tables(gm: fx.GraphModule) -> None:
    """Tables, tensors of one element and literals all become numbers, in place."""
    _replace_lookups(gm)
    for node in gm.graph.nodes:
        if node.target in TENSOR_QUANTIZE and node.op == "call_function":
            node.target = TENSOR_QUANTIZE[node.target]
            node.args = (node.args[0], *(_number(gm, arg) for arg in node.args[1:3]), *node.args[3:])
        elif is_op(node, ATTENTION):
            node.target = ATTENTION_NUMBERS
            values = [*node.args[:4], *(_number(gm, constant) for constant in node.args[4:8]), *node.args[8:]]
            node.args = ()
            node.kwargs = {**dict(zip(ATTENTION_ARGUMENTS, values, strict=True)), **NO_OUTPUT_QUANTIZER}


def _replace_lookups(gm: fx.GraphModule) -> None:
    lookups = [n for n in gm.graph.nodes if is_op(n, aten.index_select.default) and is_op(n.args[2], TIMESTEP_BIN)]
    if not lookups:
        return
    tables: dict[Any, int] = {lookup.args[0]: 0 for lookup in lookups}
    tables = {table: index for index, table in enumerate(tables)}
    gm.add_module(MODULE, StepNumbers([get_attr_tensor(gm, table) for table in tables]))
    step_bin = lookups[0].args[2]
    with gm.graph.inserting_after(step_bin):
        row = gm.graph.call_module(MODULE, (step_bin,))
    for lookup in lookups:
        with gm.graph.inserting_before(lookup):
            number = gm.graph.call_function(operator.getitem, (row, tables[lookup.args[0]]))
        number.meta["path"] = lookup.meta.get("path", "")
        lookup.replace_all_uses_with(number)
        gm.graph.erase_node(lookup)


def _number(gm: fx.GraphModule, value: Any) -> Any:
    """A tensor of one element that the graph holds as the number in it; numbers stay what they are."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return get_attr_tensor(gm, value).item()
    return value
