"""What is known about a node: its value, the module that made it, and the facts passes wrote on it.

This room alone touches ``node.meta``. Elsewhere a fact is an instance of a frozen dataclass (`ir/facts.py`), read and
written by its type: ``require(node, LayerPlan).info``. What torch itself keeps there, a fake value and the path of the
module, has accessors of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import fx

from qdiff_fx.errors import PassError


class Fact:
    """Base of the frozen dataclasses that passes write on nodes.

    Attributes:
        stage: who writes it, as an error says it: "the annotate pass".
    """

    stage: ClassVar[str] = "an earlier pass"


Kind = TypeVar("Kind", bound=Fact)
FACTS = "qdiff_facts"
_SAME: Any = object()


def fact(node: fx.Node, kind: type[Kind]) -> Kind | None:
    """The fact of this kind that `node` carries, if any."""
    return cast("Kind | None", _facts(node).get(kind))


def require(node: fx.Node, kind: type[Kind]) -> Kind:
    """The fact of this kind that `node` carries.

    Raises:
        PassError: it carries none.
    """
    found = fact(node, kind)
    if found is None:
        path = path_of(node)
        raise PassError(
            f"it carries no {kind.__name__}",
            where=f"node {node.name}" + (f" of {path}" if path else ""),
            fix=f"{kind.stage} writes it and has to run first".capitalize(),
        )
    return found


def has(node: fx.Node, kind: type[Fact]) -> bool:
    """Whether `node` carries a fact of this kind."""
    return kind in _facts(node)


def put(node: fx.Node, *facts: Fact) -> None:
    """Write facts on `node`; one of the same kind is replaced."""
    # A new dictionary each time: copies of a graph share what is in their nodes' meta.
    node.meta[FACTS] = {**_facts(node), **{type(each): each for each in facts}}


def drop(node: fx.Node, kind: type[Kind]) -> Kind | None:
    """Remove the fact of this kind from `node`; returns it, or None when there was none."""
    found = fact(node, kind)
    if found is not None:
        node.meta[FACTS] = {each: it for each, it in _facts(node).items() if each is not kind}
    return found


def nodes_with(nodes: fx.GraphModule | Iterable[fx.Node], kind: type[Fact]) -> list[fx.Node]:
    """The nodes, of a graph in execution order, that carry a fact of this kind."""
    return [node for node in (nodes.graph.nodes if isinstance(nodes, fx.GraphModule) else nodes) if has(node, kind)]


def facts_of(node: fx.Node) -> tuple[Fact, ...]:
    """Every fact `node` carries, in the order they were first written."""
    return tuple(_facts(node).values())


def _facts(node: fx.Node) -> Mapping[type[Fact], Fact]:
    return cast("Mapping[type[Fact], Fact]", node.meta.get(FACTS) or {})


def value(node: fx.Node) -> torch.Tensor:
    """The fake tensor a node produces. Raises TypeError when it is not a single tensor."""
    found = any_value(node)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{node.name} holds {type(found).__name__}, not a tensor")
    return found


def example_size(size: int | torch.SymInt) -> int:
    """A size, or what an open one was in the captured example."""
    return size if isinstance(size, int) else int(size.node.hint)


def value_or_none(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor a node produces, None when it is not a single tensor."""
    found = any_value(node)
    return found if isinstance(found, torch.Tensor) else None


def dtypes_of(nodes: Iterable[fx.Node]) -> set[torch.dtype]:
    """The types of the tensors that some nodes produce."""
    return {found.dtype for found in map(value_or_none, nodes) if found is not None}


def any_value(node: fx.Node) -> Any:
    """What a node produces: a fake tensor, a (symbolic) number, a tuple of these; None when it is not known."""
    return node.meta.get("val")


def set_value(node: fx.Node, value: Any) -> None:
    """Write down what a node produces."""
    node.meta["val"] = value


def path_of(node: fx.Node) -> str:
    """The dotted path of the module that made a node; "" for the network itself and where it is not known."""
    return cast(str, node.meta.get("path", ""))


def paths_of(nodes: Iterable[fx.Node]) -> list[str]:
    """`path_of` of each."""
    return [path_of(node) for node in nodes]


def set_path(node: fx.Node, path: str) -> None:
    """Write down which module made a node."""
    node.meta["path"] = path


def describe(node: fx.Node, *, value: Any, path: str = "") -> None:
    """Make value and path all that is known about a node."""
    node.meta = {"val": value, "path": path}


def describe_like(new: fx.Node, old: fx.Node, *, value: Any = _SAME, facts: bool = False) -> None:
    """Describe a new node like another one: the path and the value are the other's.

    Args:
        new: whatever was known about it before is forgotten.
        old: the node it is like.
        value: what `new` produces, where that differs.
        facts: it takes over the facts too, as it stands in for the other.
    """
    new.meta = {key: known for key, known in old.meta.items() if facts or key in ("val", "path")}
    if value is not _SAME:
        set_value(new, value)


def exported_module(node: fx.Node) -> str:
    """The path of the innermost module in what torch.export or make_fx noted on a node; "" outside of all."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return cast(str, next(reversed(stack.values()))[0])
