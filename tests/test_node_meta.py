"""`node.meta` and a graph's `meta` are touched in one room: elsewhere facts are read and written by type."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOM = "qdiff_fx/ir/"


def uses_of_meta(source: str) -> list[int]:
    """Lines that read or write an attribute called `meta`, in whatever way."""
    return [
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "meta"
    ]


def files() -> list[str]:
    return [
        file.relative_to(ROOT).as_posix()
        for folder in ("qdiff_fx", "benchmarks", "examples", "tests")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_meta_is_touched_in_its_room_alone():
    found = {file: uses_of_meta((ROOT / file).read_text()) for file in files()}
    outside = {file: lines for file, lines in found.items() if lines and not file.startswith(ROOM)}
    assert not outside, f"use qdiff_fx.ir.annotations instead: {outside}"


@pytest.mark.parametrize(
    "source",
    ["n.meta['val']", "n.meta.get('val')", "n.meta.update(a)", "n.meta = {}", "'val' in n.meta", "dict(a.b.meta)"],
)
def test_every_way_to_touch_it_is_seen(source):
    assert uses_of_meta(source) == [1]
