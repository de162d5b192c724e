"""The lowered graph as one Python function, most of which is calls of plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from qdiff_fx.backends.native.runtime.plan import PlanWriter, plannable
from qdiff_fx.ir.edit import tensors_of


class Program(nn.Module):
    """Runs a graph: runs of operators as plans, where there are compiled kernels, and the rest in Python.

    Constants are bound once, arguments are passed by position, values die with their last use.

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
    pieces = list(_pieces(gm.graph))
    writer = _Writer(gm)
    last_use = {each: index for index, piece in enumerate(pieces) for each in _read_by(piece)}
    for index, piece in enumerate(pieces):
        if isinstance(piece, fx.Node):
            writer.write(piece)
        else:
            writer.write_plan(piece)
        writer.forget(each for each in _read_by(piece) if last_use[each] == index)
    source = f"def run({', '.join(writer.inputs)}):\n" + "\n".join(f"    {line}" for line in writer.lines)
    exec(compile(source, "<lowered graph>", "exec"), writer.constants)
    run: Callable[..., tuple[Any, ...]] = writer.constants["run"]
    return run


def _pieces(graph: fx.Graph) -> Iterator[fx.Node | list[fx.Node]]:
    """The nodes in an order they can run in: single ones, and runs of those a plan can hold, as long as can be."""
    run: list[fx.Node] = []
    behind: set[fx.Node] = set()  # it, and what waits for it
    later: list[fx.Node] = []
    can_be_planned = plannable(graph)
    for node in graph.nodes:
        planned = node in can_be_planned
        if not planned and node.op != "output" and behind.isdisjoint(node.all_input_nodes):
            yield node
        elif not planned:
            later.append(node)
            behind.add(node)
        elif set(later).isdisjoint(node.all_input_nodes):
            run.append(node)
            behind.add(node)
        else:
            yield run
            yield from later
            run, behind, later = [node], {node}, []
    if run:
        yield run
    yield from later


def _read_by(piece: fx.Node | list[fx.Node]) -> list[fx.Node]:
    nodes = piece if isinstance(piece, list) else [piece]
    return list(dict.fromkeys(each for node in nodes for each in node.all_input_nodes))


class _Writer:
    def __init__(self, gm: fx.GraphModule):
        self.gm = gm
        self.tensors = tensors_of(gm, gm.graph.nodes)
        self.inputs: list[str] = []
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.names: dict[fx.Node, str] = {}
        self._known: dict[int, str] = {}

    def write(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.names[node] = self._constant(self.tensors[node])
            return
        name = self._name(node)
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

    def write_plan(self, nodes: list[fx.Node]) -> None:
        """A call of a plan of these nodes."""
        inside = set(nodes)
        inputs = [each for each in _read_by(nodes) if each not in inside and each.op != "get_attr"]
        results = [node for node in nodes if not inside.issuperset(node.users)]
        plan = PlanWriter(self.tensors, inputs, nodes, results)
        given = ", ".join(
            f"[{', '.join(self.names[each] for each in nodes)}]" for nodes in (plan.tensors, plan.numbers)
        )
        tensors, numbers = (
            "".join(f"{self._name(node)}, " for node in nodes) for nodes in (plan.tensor_results, plan.number_results)
        )
        self.lines.append(f"({tensors}), ({numbers}) = {self._constant(plan.run)}({given})")

    def _name(self, node: fx.Node) -> str:
        self.names[node] = f"v{len(self.names)}"
        return self.names[node]

    def forget(self, nodes: Iterable[fx.Node]) -> None:
        """Delete these values, as far as Python holds them."""
        names = [self.names[each] for each in nodes if each in self.names and each.op != "get_attr"]
        if names and not self.lines[-1].startswith("return"):
            self.lines.append(f"del {', '.join(names)}")

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
