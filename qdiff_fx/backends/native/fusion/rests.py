"""The second code of a 16-bit input straight from its values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.layers import QUANTIZE, QUANTIZE_REST, call, named
from qdiff_fx.ir.edit import is_op

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
FIRST = ("scale", "zero_point", "low", "high")


def join_rests(gm: fx.GraphModule) -> None:
    """``quantize(x - dequantize(quantize(x)))`` becomes one kernel, in place.

    It makes the first code again, which costs less than reading it, and reads x in whichever type the kernel before
    writes.
    """
    for quantize in [n for n in gm.graph.nodes if is_op(n, QUANTIZE)]:
        first = _first_code(quantize)
        if first is None or (named(quantize)["low"], named(quantize)["high"]) != (0, 255):
            continue
        kwargs = {name: named(first)[name] for name in ("x", "activation", *FIRST)}
        kwargs |= {f"rest_{name}": named(quantize)[name] for name in ("scale", "zero_point")}
        with gm.graph.inserting_before(quantize):
            rest = call(gm.graph, QUANTIZE_REST, kwargs=kwargs)
        rest.meta = dict(quantize.meta)
        quantize.replace_all_uses_with(rest)
        gm.graph.erase_node(quantize)


def _first_code(quantize: fx.Node) -> fx.Node | None:
    """The quantizer to uint8 whose rest this one quantizes, if that is what it does."""
    difference: Any = named(quantize)["x"]
    if not is_op(difference, aten.sub.Tensor) or difference.kwargs or named(quantize)["out_dtype"] != torch.uint8:
        return None
    source, values = difference.args
    if not is_op(values, qd.dequantize_per_tensor.default):
        return None
    first, *parameters = values.args
    if not is_op(first, QUANTIZE) or named(first)["out_dtype"] != torch.uint8:
        return None
    same = named(first)["x"] is source and parameters[:4] == [named(first)[name] for name in FIRST]
    return first if same else None
