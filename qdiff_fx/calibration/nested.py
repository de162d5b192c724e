"""Forward arguments as flat names: {"added_cond_kwargs": {"time_ids": x}} <-> {"added_cond_kwargs.time_ids": x}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qdiff_fx.errors import CalibrationError


def flatten(arguments: Mapping[str, Any], prefix: str = "", *, strict: bool = True) -> dict[str, Tensor]:
    """Every tensor by its dotted path; items of lists and tuples are named by their index, None is left out.

    Raises:
        CalibrationError: something is not a tensor, or a mapping or sequence of tensors (if strict; else left out).
    """
    flat: dict[str, Tensor] = {}
    for key, value in arguments.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.", strict=strict)
        elif isinstance(value, (list, tuple)):
            flat |= flatten({str(index): item for index, item in enumerate(value)}, f"{name}.", strict=strict)
        elif value is not None and strict:
            raise CalibrationError(
                f"a {type(value).__name__} cannot be recorded, only tensors",
                where=f"argument {name!r}",
                fix="Call the network without it, or with a tensor",
            )
    return flat


def unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten`; sequences come back as tuples."""
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return {key: _with_tuples(value) for key, value in tree.items()}


def _with_tuples(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {key: _with_tuples(value) for key, value in node.items()}
    if all(key.isdigit() for key in children):
        return tuple(children[str(index)] for index in range(len(children)))
    return children
