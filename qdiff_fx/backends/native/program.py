"""The lowered graph as one Python function without attribute lookups: at small batches those would be felt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from qdiff_fx.graph import get_attr_tensor


class Program(nn.Module):
    """Runs a graph: its constants are bound once, arguments are passed by position, values die with their last use.

    The graph stays at hand as `graph_module`, for whoever wants to look at it.
    """

    def __init__(self, graph_module: fx.GraphModule):
        super().__init__()
        self.graph_module = graph_module
        self._run = compile_graph(graph_module)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        return self._run(*inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        # The function holds the constants by reference, as every copy may.
        return Program(self.graph_module)


def compile_graph(gm: fx.GraphModule) -> Callable[..., tuple[Any, ...]]:
    """A function of the graph's inputs that returns its outputs."""
    writer = _Writer(gm)
    for node in gm.graph.nodes:
        writer.write(node)
    source = f"def run({', '.join(writer.inputs)}):\n" + "\n".join(f"    {line}" for line in writer.lines)
    exec(compile(source, "<lowered graph>", "exec"), writer.constants)
    run: Callable[..., tuple[Any, ...]] = writer.constants["run"]
    return run


class _Writer:
    def __init__(self, gm: fx.GraphModule):
        self.gm = gm
        self.inputs: list[str] = []
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.names: dict[fx.Node, str] = {}
        self._known: dict[int, str] = {}
        self._last_use = {user: node for node in gm.graph.nodes for user in node.all_input_nodes}

    def write(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.names[node] = self._constant(get_attr_tensor(self.gm, node))
            return
        name = self.names[node] = f"v{len(self.names)}"
        if node.op == "placeholder":
            self.inputs.append(name)
            return
        if node.op == "output":
            self.lines.append(f"return {self._text(node.args[0])}")
            return
        target = node.target if node.op == "call_function" else self.gm.get_submodule(str(node.target)).forward
        args, kwargs = _by_position(node)
        parts = [*map(self._text, args), *(f"{key}={self._text(value)}" for key, value in kwargs.items())]
        self.lines.append(f"{name} = {self._constant(target)}({', '.join(parts)})")
        dead = [self.names[each] for each in node.all_input_nodes if self._last_use[each] is node]
        dead = [each for each in dead if each.startswith("v")]
        if dead:
            self.lines.append(f"del {', '.join(dead)}")

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, tuple)):
            items = ", ".join(map(self._text, value))
            return f"[{items}]" if isinstance(value, list) else f"({items},)"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        """A name for a value that the source cannot spell."""
        if id(value) not in self._known:
            self._known[id(value)] = f"c{len(self._known)}"
            self.constants[self._known[id(value)]] = value
        return self._known[id(value)]


def _by_position(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of an operator in the order of its schema, as far as they are all given."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if isinstance(node.target, torch._ops.OpOverload):
        for argument in node.target._schema.arguments[len(args) :]:
            if argument.kwarg_only or argument.name not in kwargs:
                break
            args.append(kwargs.pop(argument.name))
    return args, kwargs
