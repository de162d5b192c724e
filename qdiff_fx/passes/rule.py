"""A rewrite rule: what it matches, why it may, what it becomes; and applying rules until nothing changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

from torch import fx

from qdiff_fx.errors import PassError
from qdiff_fx.ir.annotations import fact, path_of, paths_of
from qdiff_fx.ir.edit import drop_dead, is_mutable
from qdiff_fx.ir.facts import QuantizedLayer
from qdiff_fx.passes.framework import Change, Pass, PassReport, Refusal

MAX_SWEEPS = 50
Found = TypeVar("Found")
Revisit = Literal["all", "changed"]


class Rule(ABC, Generic[Found]):
    """One local rewrite around a call_function node.

    Attributes:
        targets: the ops the rule is offered, e.g. `torch.ops.aten.bmm.default`.
    """

    targets: frozenset[Callable[..., Any]] = frozenset()

    def wants(self, node: fx.Node) -> bool:
        """Whether the rule is offered this node at all; decided once for all nodes of one target."""
        return node.target in self.targets

    @abstractmethod
    def match(self, gm: fx.GraphModule, node: fx.Node) -> Found | None:
        """What was recognised at `node`, or None when the rule has nothing to say about it."""

    def refuse(self, gm: fx.GraphModule, found: Found) -> str:
        """Why the match must be left alone; empty when it may be rewritten."""
        return ""

    def subject(self, node: fx.Node, found: Found) -> fx.Node:
        """The node a refusal at `node` is about, by whose path it is reported: a layer, where one would have gained."""
        return node

    @abstractmethod
    def rewrite(self, gm: fx.GraphModule, found: Found) -> str:
        """Make the change; returns what the match became. Dead nodes may be left behind."""


class Rewrites(Pass):
    """A pass that is nothing but rules.

    Args:
        name: how reports and errors call it.
        rules: offered to every node in this order.
        requires, ensures, breaks: as of every pass.
        revisit: which nodes the sweeps after the first see: "all", until no rule fires anywhere, or those that
            "changed": new ones, and those a rule fired at. The latter is for rules that make no matches elsewhere.
    """

    def __init__(
        self,
        name: str,
        *rules: Rule[Any],
        requires: Iterable[str] = (),
        ensures: Iterable[str] = (),
        breaks: Iterable[str] = (),
        revisit: Revisit = "all",
    ):
        self.name, self.rules, self.revisit = name, rules, revisit
        self.requires, self.ensures, self.breaks = map(frozenset, (requires, ensures, breaks))

    def run(self, gm: fx.GraphModule) -> PassReport:
        """Rewrite in place. Raises PassError when the rewrites do not settle."""
        changes, refusals = apply_rules(gm, self.rules, self.revisit)
        return PassReport(self.name, tuple(changes), tuple(refusals))


def apply_rules(
    gm: fx.GraphModule, rules: Sequence[Rule[Any]], revisit: Revisit = "all"
) -> tuple[list[Change], list[Refusal]]:
    """Apply `rules` over and over until none fires.

    Returns the changes made, and the refusals that stand in the final graph.

    Raises:
        PassError: the rules keep undoing each other's work.
    """
    dispatch = _Dispatch(rules)
    changes: list[Change] = []
    refused: dict[tuple[fx.Node, str], Refusal] = {}
    nodes = list(gm.graph.nodes)
    for _ in range(MAX_SWEEPS):
        known = set(gm.graph.nodes)
        made, fired = _sweep(gm, dispatch, nodes, refused)
        changes += made
        if not made:
            return changes, [refusal for (node, _), refusal in refused.items() if not node._erased]
        nodes = list(gm.graph.nodes)
        if revisit == "changed":
            nodes = [node for node in nodes if node in fired or node not in known]
        else:
            refused.clear()
    raise PassError(f"the rewrites do not settle within {MAX_SWEEPS} sweeps", where=str(changes[-1]))


def pending(gm: fx.GraphModule, rules: Sequence[Rule[Any]]) -> list[str]:
    """The nodes some rule would still rewrite, one line each."""
    return [
        f"{node.name} ({node.target}) is still open to {type(rule).__name__}"
        for node, rule, found in _matches(gm, _Dispatch(rules), gm.graph.nodes)
        if not rule.refuse(gm, found)
    ]


def replace_node(node: fx.Node, by: fx.Node) -> None:
    """Let every reader of `node` read `by`, and erase `node` (dead dropouts are never swept away)."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


class _Dispatch(dict[Any, tuple[Rule[Any], ...]]):
    """Target → the rules that want it, so that a rule is only asked about nodes of its targets."""

    def __init__(self, rules: Sequence[Rule[Any]]):
        super().__init__()
        self._rules = rules

    def of(self, node: fx.Node) -> tuple[Rule[Any], ...]:
        if node.op != "call_function":
            return ()
        if node.target not in self:
            self[node.target] = tuple(rule for rule in self._rules if rule.wants(node))
        return self[node.target]


def _sweep(
    gm: fx.GraphModule, dispatch: _Dispatch, nodes: list[fx.Node], refused: dict[tuple[fx.Node, str], Refusal]
) -> tuple[list[Change], set[fx.Node]]:
    """The changes made in one walk, and the nodes they were made at; `refused` is brought up to date."""
    made: list[tuple[fx.Node, str, str]] = []
    for node, rule, found in _matches(gm, dispatch, nodes):
        key = (node, type(rule).__name__)
        reason = rule.refuse(gm, found)
        if reason:
            refused[key] = Refusal(node.name, _reported_as(rule.subject(node, found)), reason)
        else:
            name = node.name
            made.append((node, name, rule.rewrite(gm, found)))
            refused.pop(key, None)
    if not made:
        return [], set()
    drop_dead(gm.graph)
    # Erased nodes too remember which module they were of.
    paths = paths_of([node for node, _, _ in made])
    changes = [Change(name, path, what) for (_, name, what), path in zip(made, paths, strict=True)]
    return changes, {node for node, _, _ in made}


def _matches(
    gm: fx.GraphModule, dispatch: _Dispatch, nodes: Iterable[fx.Node]
) -> Iterator[tuple[fx.Node, Rule[Any], Any]]:
    """Every live one of `nodes` with each rule that recognises it, on the graph as it changes."""
    for node in nodes:
        for rule in dispatch.of(node):
            # A rule before this one may have erased the node, or made it another operator's.
            if not _is_live(node) or rule not in dispatch.of(node):
                continue
            found = rule.match(gm, node)
            if found is not None:
                yield node, rule, found


def _is_live(node: fx.Node) -> bool:
    """Whether the node is still in the graph and its result, or its side effect, matters."""
    return not node._erased and (bool(node.users) or node.is_impure() or is_mutable(node))


def _reported_as(node: fx.Node) -> str:
    """A layer's name in reports where `node` is a layer; otherwise the path of the module that made it."""
    layer = fact(node, QuantizedLayer)
    return layer.info.path if layer else path_of(node)
