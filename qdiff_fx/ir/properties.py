"""What is known about a graph as a whole: the stages it has reached, and how they were reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import fx

from qdiff_fx.config import SplitPolicy

_PROPERTIES, _SPLIT = "properties", "split_policy"


def properties(gm: fx.GraphModule) -> frozenset[str]:
    """The properties the passes run so far have given this graph."""
    return frozenset(gm.meta.get(_PROPERTIES, ()))


def set_properties(gm: fx.GraphModule, held: Iterable[str]) -> None:
    """Make these the properties of the graph."""
    # A new set, never an update in place: copies of a GraphModule share the objects in their meta.
    gm.meta[_PROPERTIES] = frozenset(held)


def split_policy(gm: fx.GraphModule) -> SplitPolicy:
    """Which layers over concatenations have been split."""
    return cast(SplitPolicy, gm.meta.get(_SPLIT, "off"))


def set_split_policy(gm: fx.GraphModule, policy: SplitPolicy) -> None:
    """Write down which layers over concatenations are being split."""
    gm.meta[_SPLIT] = policy


def copy_notes(gm: fx.GraphModule, source: fx.GraphModule) -> None:
    """Give `gm` everything that is known about `source` as a whole."""
    gm.meta.update(source.meta)
