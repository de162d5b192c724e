"""A graph as text: stable across runs, small enough to read and to compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.ir.annotations import any_value, path_of

_SHORT = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def format_graph(gm: fx.GraphModule) -> str:
    """One line per node: ``%3: f32[?,8,4,4] = aten.conv2d.default(%0, %1, …)  # module.path``.

    Values are numbered in execution order, parameters printed by name, symbolic sizes as ``?``.
    """
    names: dict[fx.Node, str] = {}
    lines = []
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif node.op == "output":
            lines.append(f"return {_argument(node.args[0], names)}")
        else:
            names[node] = f"%{len(lines)}"
            lines.append(_line(node, names))
    return "\n".join(lines)


def _line(node: fx.Node, names: dict[fx.Node, str]) -> str:
    head = f"{names[node]}: {_type(any_value(node))}"
    if node.op == "placeholder":
        return f"{head} = input {node.target}"
    arguments = [_argument(arg, names) for arg in node.args]
    arguments += [f"{key}={_argument(arg, names)}" for key, arg in node.kwargs.items()]
    path = path_of(node)
    return f"{head} = {node.target}({', '.join(arguments)})" + (f"  # {path}" if path else "")


def _argument(arg: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(arg, fx.Node):
        return names[arg]
    if isinstance(arg, list | tuple):
        return f"[{', '.join(_argument(item, names) for item in arg)}]"
    return str(float(f"{arg:.6g}")) if isinstance(arg, float) else str(arg)


def _type(val: Any) -> str:
    if isinstance(val, torch.Tensor):
        sizes = ",".join(str(size) if isinstance(size, int) else "?" for size in val.shape)
        return f"{_SHORT.get(val.dtype, str(val.dtype))}[{sizes}]"
    if isinstance(val, list | tuple):
        return f"({', '.join(_type(item) for item in val)})"
    return "none" if val is None else "int" if isinstance(val, int | torch.SymInt) else type(val).__name__
