"""From the flat outputs of a graph back to what the network returned."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from qdiff_fx.errors import CaptureError

Structure = dict[str, Any]

# The only classes a saved signature may name; every other output class comes back as an Output.
OUTPUT_CLASSES = {
    "UNet2DOutput": "diffusers.models.unets.unet_2d",
    "UNet2DConditionOutput": "diffusers.models.unets.unet_2d_condition",
}


class Output(OrderedDict[str, Any]):
    """A dict read by key, attribute or position: `out["sample"]`, `out.sample`, `out[0]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's output has no '{name}', only {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def flatten_output(value: Any) -> tuple[list[torch.Tensor], Structure]:
    """The tensors of a network's result, and the JSON-able structure to put them back into.

    Raises CaptureError for a result that holds anything but tensors, constants and containers of these.
    """
    flat: list[torch.Tensor] = []
    return flat, _flatten(value, flat)


def _flatten(value: Any, flat: list[torch.Tensor]) -> Structure:
    if isinstance(value, torch.Tensor):
        flat.append(value)
        return {"kind": "tensor"}
    if value is None or isinstance(value, bool | int | float | str):
        return {"kind": "constant", "value": value}
    if isinstance(value, Mapping):
        kind = "dict" if type(value) in (dict, OrderedDict) else "output"
        return _named(kind, type(value).__name__, dict(value), flat)
    if is_dataclass(value) and not isinstance(value, type):
        return _named(
            "output", type(value).__name__, {each.name: getattr(value, each.name) for each in fields(value)}, flat
        )
    if hasattr(value, "_asdict"):
        return _named("output", type(value).__name__, value._asdict(), flat)
    if isinstance(value, Sequence):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_flatten(item, flat) for item in value]}
    raise CaptureError(
        f"the network returns {type(value).__name__!r}",
        fix="Return tensors, or tuples, lists and dicts of tensors",
    )


def _named(kind: str, name: str, entries: Mapping[str, Any], flat: list[torch.Tensor]) -> Structure:
    items = {str(key): _flatten(item, flat) for key, item in entries.items()}
    return {"kind": kind, "class": name, "items": items}


def output_names(structure: Structure, name: str = "") -> list[str]:
    """Where in the result each of its tensors is, in the order of `flatten_output`: "sample", "residuals.0"."""
    if structure["kind"] == "tensor":
        return [name or "0"]
    if structure["kind"] == "constant":
        return []
    items = structure["items"]
    named = items.items() if isinstance(items, Mapping) else enumerate(items)
    return [each for key, item in named for each in output_names(item, f"{name}.{key}" if name else str(key))]


def pack_output(flat: Sequence[torch.Tensor], structure: Structure, return_dict: bool = True) -> Any:
    """The inverse of `flatten_output`; with return_dict=False a named structure becomes a plain tuple."""
    tensors = iter(flat)
    if return_dict or structure["kind"] not in ("dict", "output"):
        return _pack(tensors, structure)
    return tuple(_pack(tensors, item) for item in structure["items"].values())


def _pack(tensors: Iterator[torch.Tensor], structure: Structure) -> Any:
    kind = structure["kind"]
    if kind == "tensor":
        return next(tensors)
    if kind == "constant":
        return structure["value"]
    if kind in ("dict", "output"):
        entries = {key: _pack(tensors, item) for key, item in structure["items"].items()}
        return entries if kind == "dict" else _output_class(structure["class"])(**entries)
    items = [_pack(tensors, item) for item in structure["items"]]
    return items if kind == "list" else tuple(items)


def _output_class(name: str) -> type:
    """The diffusers class of that name where somebody has imported it, else Output, which is read in the same ways.

    Importing it here would cost a process that does not need it more than a second.
    """
    found: type = getattr(sys.modules.get(OUTPUT_CLASSES.get(name, "")), name, Output)
    return found
