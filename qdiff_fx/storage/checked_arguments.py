"""The arguments of a call in a loaded graph: as many as the operator's schema has, each of its type, sizes sane.

Torch checks types itself when an operator is called. It does not check what is dear or dangerous: that a size is one,
that a device is where tensors live, that a whole number does not wrap around once two of them are multiplied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir import ops
from qdiff_fx.ir.ops import Kind
from qdiff_fx.storage.checked_qparams import check_scale
from qdiff_fx.storage.checked_signature import DTYPES
from qdiff_fx.storage.fields import is_number, is_text, is_whole, shown

# Products of two of them stay below 2**63, and no network has a size, a stride or a factor beyond.
LARGEST = (1 << 31) - 1
MOST_ITEMS = 1 << 14
DEVICES = ("cpu", "cuda", "mps", "xpu")
LAYOUTS = (torch.strided,)
MEMORY_FORMATS = (
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)
TYPES = frozenset(getattr(torch, name) for name in DTYPES)
# "To the end" is the largest whole number there is; torch cuts these to the size of the tensor.
CUT_TO_SIZE = {"aten.slice.Tensor": ("start", "end"), "aten.slice_scatter.default": ("start", "end")}
# What may be any number: elements, not sizes.
ANY_WHOLE = {"aten.randint.low": ("low", "high"), "aten.randint.default": ("high",)}
ON_CODES = (Kind.QUANTIZE, Kind.DEQUANTIZE)


@dataclass(frozen=True)
class _Parameter:
    """One argument of a schema: its name and type as written there, and whether it may be left out or go by place."""

    name: str
    type: str
    required: bool
    by_name_only: bool


@functools.cache
def _parameters(target: torch._ops.OpOverload) -> tuple[_Parameter, ...]:
    return tuple(
        _Parameter(each.name, str(each.real_type), not each.has_default_value(), each.kwarg_only)
        for each in target._schema.arguments
    )


def check_arguments(node: fx.Node) -> None:
    """Check what a call of the operator table is given.

    Raises:
        ArtifactError: an argument is missing, unknown, of another type, or out of all bounds.
    """
    if isinstance(node.target, torch._ops.OpOverload):
        _check_operator(node, node.target)
    else:
        _check_function(node)


def _check_operator(node: fx.Node, target: torch._ops.OpOverload) -> None:
    given = _by_name(node, _parameters(target))
    for parameter in _parameters(target):
        if parameter.name in given:
            value = given[parameter.name]
            if not _fits(value, parameter.type) or not _sane(value, parameter, str(target)):
                raise _refusal(node, f"its {parameter.name} is {shown(value)}, not a usual {parameter.type}")
    row = ops.row_of(target)
    if row is not None and row.kind in ON_CODES:
        _check_codes(node, given)


def _by_name(node: fx.Node, parameters: tuple[_Parameter, ...]) -> Mapping[str, Any]:
    by_place = [each.name for each in parameters if not each.by_name_only]
    if len(node.args) > len(by_place):
        raise _refusal(node, f"it has {len(node.args)} arguments, and takes {len(by_place)}")
    given = dict(zip(by_place, node.args, strict=False))
    wrong = [name for name in node.kwargs if name in given or all(name != each.name for each in parameters)]
    if wrong:
        raise _refusal(node, f"it has no argument {shown(wrong[0])} beside the others")
    given |= node.kwargs
    missing = [each.name for each in parameters if each.required and each.name not in given]
    if missing:
        raise _refusal(node, f"its {missing[0]} is missing")
    return given


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a type as schemas write it: "int", "Optional[List[float]]"."""
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[len("Optional[") : -1])
    if kind.startswith("List["):
        item = kind[len("List[") : -1]
        if isinstance(value, list | tuple):
            return len(value) <= MOST_ITEMS and all(_fits(each, item) for each in value)
        return item == "int" and _fits(value, item)  # one for all dimensions
    return _SINGLE.get(kind, _nothing)(value)


def _nothing(value: Any) -> bool:
    """A generator, say: nothing that a file can hold."""
    return False


def _is_number_or_node(value: Any) -> bool:
    return isinstance(value, bool | int | float | fx.Node)


_SINGLE: dict[str, Callable[[Any], bool]] = {
    "Tensor": _is_number_or_node,
    "number": _is_number_or_node,
    "float": lambda value: isinstance(value, int | float | fx.Node) and not isinstance(value, bool),
    "int": lambda value: isinstance(value, int | fx.Node) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "str": is_text,
    "ScalarType": TYPES.__contains__,
    "Layout": LAYOUTS.__contains__,
    "MemoryFormat": MEMORY_FORMATS.__contains__,
    "Device": lambda value: isinstance(value, torch.device) and value.type in DEVICES,
}


def _sane(value: Any, parameter: _Parameter, target: str) -> bool:
    """Whether whole numbers are small enough not to wrap, and factors are finite."""
    if isinstance(value, list | tuple):
        return all(_sane(each, parameter, target) for each in value)
    if "int" in parameter.type and isinstance(value, int):
        free = (*CUT_TO_SIZE.get(target, ()), *ANY_WHOLE.get(target, ()))
        return parameter.name in free or abs(value) <= LARGEST
    if "List[float]" in parameter.type and isinstance(value, float):
        return math.isfinite(value) and abs(value) <= LARGEST
    return True


def _check_codes(node: fx.Node, given: Mapping[str, Any]) -> None:
    """Scales that are numbers are positive, and the codes between the bounds fit their type."""
    where = f"graph.json, node {node.name}"
    if isinstance(given.get("scale"), int | float):
        check_scale(given["scale"], where)
    dtype = given["dtype"]
    if dtype not in (torch.int8, torch.uint8):
        raise _refusal(node, f"its codes are {dtype}, not int8 or uint8")
    limits = torch.iinfo(dtype)
    low, high = given["quant_min"], given["quant_max"]
    if not is_whole(low, limits.min, limits.max) or not is_whole(high, low, limits.max):
        raise _refusal(node, f"codes from {shown(low)} to {shown(high)} are no {dtype}")
    if isinstance(given.get("zero_point"), int) and not is_whole(given["zero_point"], limits.min, limits.max):
        raise _refusal(node, f"its zero-point is {shown(given['zero_point'])}, which is no {dtype}")


# How many arguments a Python function takes; those with a list take nothing else.
_LISTS = ("torch.sym_sum",)
_UNARY = ("operator.neg", "math.ceil", "math.floor", "math.trunc", "torch.sym_int", "torch.sym_float", "torch.sym_not")
_TERNARY = ("torch.sym_ite",)


def _check_function(node: fx.Node) -> None:
    row = ops.row_of(node.target)
    name = row.name if row else ""
    if name == "operator.getitem":
        source, index = (*node.args, None, None)[:2]
        if len(node.args) != 2 or not isinstance(source, fx.Node) or not is_whole(index, -MOST_ITEMS, MOST_ITEMS):
            raise _refusal(node, "it does not take one result of several")
        return
    args = node.args[0] if name in _LISTS and len(node.args) == 1 else node.args
    count = 1 if name in _UNARY else 3 if name in _TERNARY else 2
    if node.kwargs or not isinstance(args, list | tuple) or (len(args) != count and name not in _LISTS):
        raise _refusal(node, f"it has not {count} arguments")
    for each in args:
        if not isinstance(each, fx.Node | bool) and not is_number(each):
            raise _refusal(node, f"{shown(each)} is not a number")


def _refusal(node: fx.Node, what: str) -> ArtifactError:
    return ArtifactError(what, where=f"graph.json, node {node.name} ({target_name(node)})")


def target_name(node: fx.Node) -> str:
    """What a node calls, as the operator table names it."""
    row = ops.row_of(node.target)
    return row.name if row else str(node.target)
