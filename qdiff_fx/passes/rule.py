"""A rewrite rule: what it matches, why it may, what it becomes; and applying rules until nothing changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch import fx

from qdiff_fx.errors import PassError
from qdiff_fx.ir.annotations import path_of
from qdiff_fx.ir.edit import is_mutable
from qdiff_fx.passes.framework import Change, Refusal

MAX_SWEEPS = 50
Found = TypeVar("Found")


class Rule(ABC, Generic[Found]):
    """One local rewrite around a call_function node.

    Attributes:
        targets: the ops the rule is offered, e.g. `torch.ops.aten.bmm.default`.
    """

    targets: frozenset[Callable[..., Any]] = frozenset()

    def wants(self, node: fx.Node) -> bool:
        """Whether the rule is offered this node at all."""
        return node.target in self.targets

    @abstractmethod
    def match(self, gm: fx.GraphModule, node: fx.Node) -> Found | None:
        """What was recognised at `node`, or None when the rule has nothing to say about it."""

    def refuse(self, gm: fx.GraphModule, found: Found) -> str:
        """Why the match must be left alone; empty when it may be rewritten."""
        return ""

    @abstractmethod
    def rewrite(self, gm: fx.GraphModule, found: Found) -> str:
        """Make the change; returns what the match became. Dead nodes may be left behind."""


def apply_rules(gm: fx.GraphModule, rules: Sequence[Rule[Any]]) -> tuple[list[Change], list[Refusal]]:
    """Apply `rules` over and over until none fires.

    Returns the changes made, and the refusals that stand in the final graph.

    Raises:
        PassError: the rules keep undoing each other's work.
    """
    changes: list[Change] = []
    for _ in range(MAX_SWEEPS):
        made, refusals = _sweep(gm, rules)
        changes += made
        if not made:
            return changes, refusals
    raise PassError(f"the rewrites do not settle within {MAX_SWEEPS} sweeps", where=str(changes[-1]))


def pending(gm: fx.GraphModule, rules: Sequence[Rule[Any]]) -> list[str]:
    """The nodes some rule would still rewrite, one line each."""
    return [
        f"{node.name} ({node.target}) is still open to {type(rule).__name__}"
        for node, rule, found in _matches(gm, rules)
        if not rule.refuse(gm, found)
    ]


def replace_node(node: fx.Node, by: fx.Node) -> None:
    """Let every reader of `node` read `by`, and erase `node` (dead dropouts are never swept away)."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _sweep(gm: fx.GraphModule, rules: Sequence[Rule[Any]]) -> tuple[list[Change], list[Refusal]]:
    changes: list[Change] = []
    refusals: list[Refusal] = []
    for node, rule, found in _matches(gm, rules):
        name, path = node.name, path_of(node)
        reason = rule.refuse(gm, found)
        if reason:
            refusals.append(Refusal(name, path, reason))
        else:
            changes.append(Change(name, path, rule.rewrite(gm, found)))
    gm.graph.eliminate_dead_code()
    return changes, refusals


def _matches(gm: fx.GraphModule, rules: Sequence[Rule[Any]]) -> Iterator[tuple[fx.Node, Rule[Any], Any]]:
    """Every live node with each rule that recognises it, in execution order, on the graph as it changes."""
    for node in list(gm.graph.nodes):
        for rule in rules:
            if not _is_live(node) or not rule.wants(node):
                continue
            found = rule.match(gm, node)
            if found is not None:
                yield node, rule, found


def _is_live(node: fx.Node) -> bool:
    """Whether the node is still in the graph and its result, or its side effect, matters."""
    if node.op != "call_function" or node._erased:
        return False
    return bool(node.users) or node.is_impure() or is_mutable(node)
