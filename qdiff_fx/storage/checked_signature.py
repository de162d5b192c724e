"""The description of a call as a file has it: every field checked, before anything believes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from qdiff_fx.errors import ArtifactError
from qdiff_fx.signature import CallSignature
from qdiff_fx.signature.attributes import namespaces
from qdiff_fx.signature.outputs import OUTPUT_CLASSES, output_names
from qdiff_fx.storage.fields import Fields, is_scalar, is_text, is_whole, shown

ROLES = ("sample", "timestep", "")
MOST_DIMENSIONS = 16
LARGEST_SIZE = (1 << 31) - 1
FLOATS = {"float64", "float32", "float16", "bfloat16"}
DTYPES = FLOATS | {"complex64", "complex128", "int64", "int32", "int16", "int8", "uint8", "bool"}
WHERE = "signature"


def signature_from_json(data: object) -> CallSignature:
    """The signature that `CallSignature.to_json` described.

    Raises:
        ArtifactError: a field is missing, of another kind, or out of range, or two contradict each other.
    """
    fields = Fields(data, WHERE)
    names = [_check_parameter(each) for each in fields.objects("parameters")]
    _check_once(names, "parameters")
    inputs = fields.objects("inputs")
    for each in inputs:
        _check_input(each)
    _check_once([each.text("name") for each in inputs], "inputs")
    roles = Counter(each.text("role") for each in inputs)
    if roles["sample"] != 1 or roles["timestep"] > 1:
        raise ArtifactError(
            f"{roles['sample']} inputs are the sample and {roles['timestep']} the timestep", where=f"{WHERE}.inputs"
        )
    _check_constants(fields.object("constants"))
    _check_output(fields.object("output"))
    if not output_names(fields.get("output")):
        raise ArtifactError("the network returns no tensor", where=f"{WHERE}.output")
    fields.choice("dtype", FLOATS)
    if "called_in" in fields:
        fields.choice("called_in", FLOATS)
    _check_names(fields.object("config"))
    namespaces(fields.object("attributes").data)
    if "batched_outputs" in fields:
        _check_flags(fields.items("batched_outputs"))
    return CallSignature.from_json(fields.data)


def dtype_of(fields: Fields, name: str) -> torch.dtype:
    """The type a field names. Raises ArtifactError where networks have no tensors of that type."""
    found: torch.dtype = getattr(torch, fields.choice(name, DTYPES))
    return found


def _check_parameter(fields: Fields) -> str:
    name = fields.text("name")
    if not name.isidentifier():
        raise ArtifactError(f"{shown(name)} is not the name of an argument", where=fields.where)
    fields.flag("required")
    fields.flag("keyword_only")
    if fields.get("default") is not None and not is_scalar(fields.get("default")):
        raise ArtifactError(f"its default is {shown(fields.get('default'))}, not one value", where=fields.where)
    return name


def _check_input(fields: Fields) -> None:
    fields.text("name")
    fields.choice("role", ROLES)
    dtype_of(fields, "dtype")
    dims = fields.items("dims")
    if len(dims) > MOST_DIMENSIONS or not all(map(_is_size, dims)):
        raise ArtifactError(
            f"its dims are not up to {MOST_DIMENSIONS} sizes, each a number or [symbol, multiple]", where=fields.where
        )
    if "fixed" in fields and not all(_is_reason(each, len(dims)) for each in fields.items("fixed")):
        raise ArtifactError("its fixed are not dimensions and reasons", where=fields.where)
    if fields.text("role") == "sample" and not dims:
        raise ArtifactError("the sample has no dimensions", where=fields.where)


def _is_size(dim: object) -> bool:
    if isinstance(dim, list):
        return len(dim) == 2 and is_text(dim[0]) and is_whole(dim[1], 1, LARGEST_SIZE)
    return is_whole(dim, 0, LARGEST_SIZE)


def _is_reason(fixed: object, dims: int) -> bool:
    """Whether it says of a dimension why its size is fixed."""
    return isinstance(fixed, list) and len(fixed) == 2 and is_whole(fixed[0], 0, dims - 1) and is_text(fixed[1])


def _check_constants(fields: Fields) -> None:
    _check_names(fields)
    for name, value in fields.data.items():
        if not is_scalar(value):
            raise ArtifactError(f"{name} is {shown(value)}, not one value", where=fields.where)


def _check_names(fields: Fields) -> None:
    for name in fields.data:
        if not is_text(name):
            raise ArtifactError(f"{shown(name)} is not a name", where=fields.where)


def _check_output(fields: Fields) -> None:
    kind = fields.choice("kind", ("tensor", "constant", "dict", "output", "list", "tuple"))
    if kind == "constant":
        value = fields.get("value")
        if value is not None and not is_scalar(value):
            raise ArtifactError(f"a constant is {shown(value)}, not one value", where=fields.where)
    elif kind in ("dict", "output"):
        items = fields.object("items")
        _check_names(items)
        _check_class(fields.text("class"), items.data)
        for name in items.data:
            _check_output(items.object(name))
    elif kind != "tensor":
        for each in fields.objects("items"):
            _check_output(each)


def _check_class(name: str, items: Mapping[str, object]) -> None:
    """Classes of diffusers are made of exactly their own fields."""
    if name in OUTPUT_CLASSES and set(items) != {"sample"}:
        raise ArtifactError(f"{name} has one field, 'sample'", where=f"{WHERE}.output")


def _check_flags(items: Iterable[object]) -> None:
    if not all(isinstance(each, bool) for each in items):
        raise ArtifactError("batched_outputs are not true or false each", where=WHERE)


def _check_once(names: Iterable[str], what: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ArtifactError(f"{shown(twice)} is there twice", where=f"{WHERE}.{what}")
