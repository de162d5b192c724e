"""Forward arguments as flat names, and how they were nested: {"cond": {"ids": x}} <-> {"cond.ids": x} and a layout.

A layout is what JSON can hold. In it ``{"tensor": name}`` stands for a tensor, ``{"value": 1.5}`` for a number, string
or truth, ``{"dict": {…}}``, ``{"list": […]}`` and ``{"tuple": […]}`` for containers, and None for None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from qdiff_fx.errors import CalibrationError
from qdiff_fx.signature.inputs import Constant

Layout = Mapping[str, Any] | None


def flatten(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Every tensor by its dotted path; items of lists and tuples are named by their index, all else is left out."""
    flat: dict[str, Tensor] = {}
    for key, value in arguments.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            flat |= flatten({str(index): item for index, item in enumerate(value)}, f"{name}.")
    return flat


def layout_of(value: Any, name: str = "") -> Layout:
    """How a value, or a mapping of arguments, is nested.

    Raises:
        CalibrationError: something in it is no tensor, number, string or None, nor a mapping or sequence of these.
    """
    inside = f"{name}." if name else ""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return {"tensor": name}
    if isinstance(value, Constant):
        return {"value": value}
    if isinstance(value, Mapping):
        return {"dict": {str(key): layout_of(item, f"{inside}{key}") for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [layout_of(item, f"{inside}{index}") for index, item in enumerate(value)]}
    raise CalibrationError(
        f"a {type(value).__name__} cannot be recorded",
        where=f"argument {name!r}",
        fix="Call the network with tensors, numbers, strings, None, or dicts, lists and tuples of these",
    )


def nested(layout: Layout, tensors: Mapping[str, Tensor]) -> Any:
    """What was taken apart; the inverse of `flatten` and `layout_of` together."""
    if layout is None:
        return None
    (kind,) = layout
    held = layout[kind]
    if kind == "dict":
        return {key: nested(item, tensors) for key, item in held.items()}
    if kind in ("list", "tuple"):
        items = [nested(item, tensors) for item in held]
        return items if kind == "list" else tuple(items)
    return tensors[held] if kind == "tensor" else held


def layout_of_names(names: Iterable[str]) -> Layout:
    """The layout that names tell of, where none was kept: numbers are places in a tuple."""
    tree: dict[str, Any] = {}
    for name in names:
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = name
    return {"dict": {key: _of_branch(branch) for key, branch in tree.items()}}


def _of_branch(branch: Any) -> Layout:
    if not isinstance(branch, dict):
        return {"tensor": branch}
    parts = {key: _of_branch(each) for key, each in branch.items()}
    if all(key.isdigit() for key in parts):
        return {"tuple": [parts[str(index)] for index in range(len(parts))]}
    return {"dict": parts}
