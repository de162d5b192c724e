"""What of a network's state a given one differs in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

NAMED = 3  # of the keys that differ in one way


def differences(
    own: Mapping[str, Tensor], given: Mapping[str, Any], may_change: Callable[[str], bool] = lambda key: False
) -> str:
    """In words, or nothing.

    Args:
        own: the network's state, by keys.
        given: the other one.
        may_change: whether a key's tensor may have other values, of the same shape and type.
    """
    both = [key for key in own if key in given]
    forms = [key for key in both if _form(own[key]) != _form(given[key])]
    alike = [key for key in both if key not in forms and not may_change(key)]
    found = {
        "it lacks": [key for key in own if key not in given],
        "it has, and the network has not,": [key for key in given if key not in own],
        "another shape or type have": forms,
        "other values have": [key for key in alike if not torch.equal(own[key], given[key])],
    }
    return "; ".join(f"{what} {_some(keys)}" for what, keys in found.items() if keys)


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def _some(keys: Iterable[str]) -> str:
    first, more = list(keys)[:NAMED], len(list(keys)) - NAMED
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
