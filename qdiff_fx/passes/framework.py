"""What a pass is, what it reports, and the manager that holds it to its word."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from qdiff_fx.errors import PassError, QDiffError
from qdiff_fx.ir.edit import clean, drop_dead
from qdiff_fx.ir.properties import properties, set_properties
from qdiff_fx.ir.stages import STAGES, illegal


@dataclass(frozen=True)
class Change:
    """One rewrite that was made: the node it started from, that node's module path, what it became."""

    node: str
    path: str
    what: str


@dataclass(frozen=True)
class Refusal:
    """One rewrite that was nearly made, and the exact reason it was not; `path` is that of what would have gained."""

    node: str
    path: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What one pass did to a graph and what it left alone, with reasons."""

    name: str
    changed: tuple[Change, ...] = ()
    refused: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.changed)} changed, {len(self.refused)} refused"]
        lines += [f"  + {c.path or '.'} ({c.node}): {c.what}" for c in self.changed]
        lines += [f"  - {r.path or '.'} ({r.node}): {r.reason}" for r in self.refused]
        return "\n".join(lines)


class Pass(ABC):
    """A rewrite of a whole graph, in place.

    Attributes:
        name: how reports and errors call it.
        requires: properties the graph must have before.
        ensures: properties it has afterwards; the manager checks those that have a checker.
        breaks: properties it no longer has afterwards.
    """

    name: str
    requires: frozenset[str] = frozenset()
    ensures: frozenset[str] = frozenset()
    breaks: frozenset[str] = frozenset()

    @abstractmethod
    def run(self, gm: fx.GraphModule) -> PassReport:
        """Rewrite `gm` in place and say what was done. New nodes have a value and a path."""


Checker = Callable[[fx.GraphModule], list[str]]
_CHECKERS: dict[str, Checker] = {}


def checks(prop: str) -> Callable[[Checker], Checker]:
    """Registers the function that lists what in a graph violates the property `prop`."""

    def register(checker: Checker) -> Checker:
        _CHECKERS[prop] = checker
        return checker

    return register


def violations(gm: fx.GraphModule, prop: str) -> list[str]:
    """What in `gm` violates `prop`, the legal graph of a stage included; empty also for what nobody can check."""
    found = illegal(gm, prop) if prop in STAGES else []
    return found + _CHECKERS[prop](gm) if prop in _CHECKERS else found


def run_passes(gm: fx.GraphModule, passes: Sequence[Pass]) -> list[PassReport]:
    """Run `passes` in order on `gm`, in place; returns one report each.

    After every pass dead nodes are dropped, and the order of the nodes is checked and each property the graph is said
    to have: those the pass ensures, and those earlier passes ensured and this one does not declare broken. After the
    last the graph is linted and its code generated.

    Raises:
        PassError: a missing requirement, a rewrite that failed, an invalid graph or a broken promise. It names
            the pass and the passes run before it.
    """
    reports: list[PassReport] = []
    held = properties(gm)
    for current in passes:
        where = _place(current, reports)
        _check_requirements(held, current, where)
        reports.append(_run_one(gm, current, where))
        before, held = held, (held - current.breaks) | current.ensures
        _check_result(gm, held, where)
        if held != before:
            set_properties(gm, held)
    _finish(gm, reports)
    return reports


def _place(current: Pass, before: list[PassReport]) -> str:
    history = f"after {', '.join(r.name for r in before)}" if before else "run first"
    return f"pass {current.name} ({history})"


def _check_requirements(held: frozenset[str], current: Pass, where: str) -> None:
    missing = sorted(current.requires - held)
    if missing:
        raise PassError(
            f"the graph is not {' and not '.join(missing)}",
            where=where,
            fix="Run a pass that ensures it first",
        )


def _run_one(gm: fx.GraphModule, current: Pass, where: str) -> PassReport:
    try:
        report = current.run(gm)
        # Nodes nobody reads any more would count as readers of what they read.
        drop_dead(gm.graph)
        _check_order(gm.graph)
    except QDiffError:
        raise
    except Exception as error:
        raise PassError(f"{type(error).__name__}: {error}", where=where) from error
    return report


def _check_order(graph: fx.Graph) -> None:
    """Raises lint's error where a node reads a later one; the rest of lint is left for after the last pass."""
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        if not seen.issuperset(node.all_input_nodes):
            graph.lint()
        seen.add(node)


def _finish(gm: fx.GraphModule, reports: list[PassReport]) -> None:
    try:
        clean(gm)
    except Exception as error:
        where = f"after the passes {', '.join(report.name for report in reports)}"
        raise PassError(f"{type(error).__name__}: {error}", where=where) from error


def _check_result(gm: fx.GraphModule, held: frozenset[str], where: str) -> None:
    for prop in sorted(held):
        broken = violations(gm, prop)
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise PassError(f"the result is not {prop}: {broken[0]}{more}", where=where)
