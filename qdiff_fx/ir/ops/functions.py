"""Python functions that a graph may call: what is done with sizes, and taking one result of several."""

from __future__ import annotations

from qdiff_fx.ir.ops.operator import Kind, Operator

_NAMES = {
    "operator": "getitem add sub mul floordiv truediv mod neg pow eq ne le lt ge gt",
    "math": "ceil floor trunc",
    "torch": "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum",
}

ROWS = tuple(Operator(f"{module}.{name}", Kind.NUMBER) for module, names in _NAMES.items() for name in names.split())
