"""Compute once what does not depend on the image: the time embedding per timestep, keys and values per prompt.

What is remembered is found by comparing the inputs themselves, so a changed prompt is always noticed, also one that was
changed in place.
"""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections import Counter, OrderedDict
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdiff_fx.backends.native.fusion.hoist_size import SIZE
from qdiff_fx.backends.native.runtime.program import Program
from qdiff_fx.ir.annotations import any_value, describe_like
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.facts import is_sample, is_timestep
from qdiff_fx.passes.framework import Change, Pass, PassReport
from qdiff_fx.signature.memory import address_of

SMALL = 64  # elements of a tensor that is compared as part of a key
LIMIT_BYTES = 128 << 20


class Depends(IntEnum):
    """What a value depends on, in the order in which it changes."""

    NOTHING = 0
    CONDITIONING = 1
    TIMESTEP = 2
    SAMPLE = 3


MODULES = {Depends.CONDITIONING: "of_the_conditioning", Depends.TIMESTEP: "of_the_timestep"}


class Remembered(nn.Module):
    """Calls a module once per distinct inputs, tensors and numbers; the results must not be written to.

    Those that the network returns are copied, see `signature/memory.py`.

    The least recently used are forgotten when inputs and results take more than `limit_bytes`.
    """

    def __init__(self, module: nn.Module, limit_bytes: int = LIMIT_BYTES):
        super().__init__()
        self.module, self.limit_bytes = module, limit_bytes
        self.entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
        self._addresses: Counter[int] = Counter()
        self._lock = threading.Lock()
        _in_this_process.add(self)

    def after_fork(self) -> None:
        """In the child: a thread that held the lock is not there to give it back, nor to finish what it did."""
        if self._lock.locked():
            self._lock = threading.Lock()
            self.entries.clear()
            self._addresses.clear()

    def holds(self, address: int) -> bool:
        """Whether a remembered result lies there."""
        return self._addresses[address] > 0

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        key = tuple(_key(value) for value in inputs)
        large = [value for value in _flat(inputs) if _is_large(value)]
        with self._lock:
            entry = self.entries.get(key)
            if entry is not None and all(map(torch.equal, entry.large, large)):
                self.entries.move_to_end(key)
                return entry.results
        results: tuple[Any, ...] = self.module(*inputs)
        with self._lock:
            # One entry per key: of two prompts of one shape the last is kept.
            self._forget(self.entries.pop(key, None))
            self.entries[key] = _Entry([value.clone() for value in large], results)
            self._addresses.update(self.entries[key].addresses)
            while len(self.entries) > 1 and sum(each.nbytes for each in self.entries.values()) > self.limit_bytes:
                self._forget(self.entries.popitem(last=False)[1])
        return results

    def _forget(self, entry: _Entry | None) -> None:
        for address in entry.addresses if entry else ():
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return Remembered(self.module, self.limit_bytes)


_in_this_process: weakref.WeakSet[Remembered] = weakref.WeakSet()


def _after_fork() -> None:
    for remembered in list(_in_this_process):
        remembered.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Entry:
    def __init__(self, large: list[Tensor], results: tuple[Any, ...]):
        self.large, self.results = large, results
        self.nbytes = sum(value.nbytes for value in _flat((*large, *results)) if isinstance(value, Tensor))
        self.addresses = [address_of(value) for value in _flat(results) if isinstance(value, Tensor)]


def _flat(values: Any) -> list[Any]:
    """What is in a list of lists, such as the chunks of a tensor."""
    return [each for value in values for each in (_flat(value) if isinstance(value, (list, tuple)) else [value])]


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > SMALL


def _key(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    if not isinstance(value, Tensor):
        return value
    content = None if _is_large(value) else tuple(value.flatten().tolist())
    return value.dtype, tuple(value.shape), content


class RememberWhatRepeats(Pass):
    """Moves what depends on the conditioning only, or on it and the timestep, behind `Remembered`.

    No rule, as what is moved out together lies anywhere in the graph.
    """

    name = "remember_what_repeats"
    requires = frozenset({"typed"})

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes = []
        for kind in (Depends.CONDITIONING, Depends.TIMESTEP):
            depends = _classify(gm)
            nodes = [n for n in gm.graph.nodes if depends[n] == kind and n.op in ("call_function", "call_module")]
            if any(_is_work(node) for node in nodes):
                _move_out(gm, MODULES[kind], nodes, depends)
                changes.append(
                    Change(MODULES[kind], "", f"{len(nodes)} nodes are computed once per {kind.name.lower()}")
                )
        return PassReport(self.name, tuple(changes))


def _is_work(node: fx.Node) -> bool:
    """Whether remembering the node saves anything; what is remembered already is not moved again."""
    is_remembered = node.op == "call_module" and node.target in MODULES.values()
    return not is_remembered and (node.op == "call_module" or "qdiff" in str(node.target))


def _classify(gm: fx.GraphModule) -> dict[fx.Node, Depends]:
    """Sizes of inputs count as nothing: they are handed over as numbers."""
    found: dict[fx.Node, Depends] = {}
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    samples = [node for node in placeholders if is_sample(node)] or placeholders[:1]
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            given = Depends.SAMPLE if node in samples else Depends.CONDITIONING
            found[node] = Depends.TIMESTEP if is_timestep(node) else given
        elif node.op == "output" or node.target is SIZE:
            known = node.op != "output" and operand(node).op == "placeholder"
            found[node] = Depends.NOTHING if known else Depends.SAMPLE
        else:
            found[node] = max((found[each] for each in node.all_input_nodes), default=Depends.NOTHING)
    return found


def _move_out(gm: fx.GraphModule, name: str, nodes: list[fx.Node], depends: dict[fx.Node, Depends]) -> None:
    inside = set(nodes)
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    graph, copies, handed = fx.Graph(), {}, []

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node in inside or _is_constant(node, depends):
                copies[node] = graph.node_copy(node, copy)
            else:
                handed.append(node)
                copies[node] = graph.placeholder(node.name)
        return copies[node]

    graph.output(tuple(map(copy, results)))
    # Inputs turn up where they are first read; a graph has them at its beginning.
    _placeholders_first(graph)
    graph.lint()
    _placeholders_first(gm.graph)
    gm.add_module(name, Remembered(Program(fx.GraphModule(gm, graph))))
    with gm.graph.inserting_after(_hoist(handed)):
        call = gm.graph.call_module(name, tuple(handed))
    with gm.graph.inserting_before(call.next):
        replacements = [gm.graph.call_function(operator.getitem, (call, index)) for index in range(len(results))]
    for node, replacement in zip(results, replacements, strict=True):
        describe_like(replacement, node, facts=True)
        node.replace_all_uses_with(replacement, delete_user_cb=lambda user: user not in inside)
    for node in reversed(nodes):
        gm.graph.erase_node(node)


def _is_constant(node: fx.Node, depends: dict[fx.Node, Depends]) -> bool:
    """A parameter, or a tensor made from nothing but those and sizes; sizes themselves are handed over."""
    made = depends[node] == Depends.NOTHING and isinstance(any_value(node), (Tensor, list, tuple))
    return node.op == "get_attr" or (made and node.op != "placeholder")


def _placeholders_first(graph: fx.Graph) -> None:
    root = next(iter(graph.nodes)).prev
    for node in reversed([each for each in graph.nodes if each.op == "placeholder"]):
        root.append(node)


def _hoist(nodes: list[fx.Node]) -> fx.Node:
    """Move sizes and what is computed from them, and earlier results, to the top; returns the last node there."""
    needed: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.op != "placeholder" and node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    graph = nodes[0].graph
    last: fx.Node = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [each for each in graph.nodes if each in needed]:
        last.append(node)
        last = node
    return last
