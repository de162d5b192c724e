"""What README and docs show of the package is there: every name, every argument of every call.

The blocks that make up a pass, an observer or a backend are run whole, by tests/test_recipes.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qdiff_fx

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[Any]:
    found = []
    for page in PAGES:
        for number, block in enumerate(BLOCK.findall(page.read_text())):
            found.append(pytest.param(block, id=f"{page.name}-{number}"))
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names that are imported from the package, and what they are. A name that is not there is an error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qdiff_fx":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name)


def of_the_package(function: ast.expr, names: dict[str, Any]) -> Any:
    """What a call calls, where that is something public of the package."""
    if isinstance(function, ast.Name):
        return names.get(function.id) or (getattr(qdiff_fx, function.id) if function.id in qdiff_fx.__all__ else None)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "qdiff_fx":
        return getattr(qdiff_fx, function.attr)
    if isinstance(function, ast.Attribute):
        owner = of_the_package(function.value, names)
        return getattr(owner, function.attr, None) if inspect.isclass(owner) else None
    return None


def wrong_calls(block: str) -> list[str]:
    tree = ast.parse(block)
    names = dict(imported(tree))
    wrong = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = of_the_package(call.func, names)
        if called is None or any(isinstance(each, ast.Starred) for each in call.args):
            continue
        given = {each.arg: None for each in call.keywords if each.arg}
        try:
            inspect.signature(called).bind(*call.args, **given)
        except TypeError as error:
            wrong.append(f"{ast.unparse(call)}: {error}")
    return wrong


@pytest.mark.parametrize("block", blocks())
def test_every_call_of_the_package_takes_what_it_is_given(block: str) -> None:
    assert wrong_calls(block) == []


def test_there_are_blocks() -> None:
    assert len(blocks()) > 15
    assert {"README.md", "diffusers.md", "export.md"} <= {each.id.rpartition("-")[0] for each in blocks()}


def test_what_is_wrong_is_found() -> None:
    assert wrong_calls("import qdiff_fx\nqdiff_fx.quantize(pipe, bit='w4a8')")
    assert wrong_calls("from qdiff_fx import QDiffConfig\nQDiffConfig(weights=4)")
    assert wrong_calls("convert_qdiff()")
    assert not wrong_calls("from qdiff_fx import QDiffConfig\nQDiffConfig(weight_bits=4)\nother(1)")
    with pytest.raises(AttributeError):
        wrong_calls("import qdiff_fx\nqdiff_fx.nothing()")
