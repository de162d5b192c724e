"""A graph read from JSON that nobody vouches for: only operators of our table, only arguments their schemas have."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import put, set_path, set_value
from qdiff_fx.ir.edit import add_buffer
from qdiff_fx.ir.facts import Input, Part, QuantizedLayer, StaticQParams, WeightCodes
from qdiff_fx.ir.ops import Kind
from qdiff_fx.quant.qparams import WEIGHT_BITS
from qdiff_fx.storage.checked_arguments import LARGEST, TYPES, check_arguments
from qdiff_fx.storage.checked_qparams import check_scale, layer_from_json
from qdiff_fx.storage.checked_signature import DTYPES, MOST_DIMENSIONS, dtype_of
from qdiff_fx.storage.fields import Fields, is_text, is_whole, shown
from qdiff_fx.storage.graph_json import ENUMS

MOST_NODES = 1 << 18
ARGUMENTS = {"placeholder": (0,), "get_attr": (0,), "output": (1,), "call_module": (1, 2)}  # an observer: (x, t)
DEEPEST = 64  # modules in modules
WHERE = "graph.json"


def graph_from_json(rows: object, modules: Collection[str] = (), mode: FakeTensorMode | None = None) -> fx.Graph:
    """The graph ``graph_to_json`` wrote; every node of which it says what tensor it produces gets a fake one.

    Args:
        rows: one dictionary per node.
        modules: paths of the modules that nodes may call; there are none in a q/dq graph.
        mode: that the fake tensors belong to; by default one of its own.

    Raises:
        ArtifactError: the description is malformed, calls something outside the table of operators, or something in
            it with arguments that are not its own.
    """
    if not isinstance(rows, list) or len(rows) > MOST_NODES:
        raise ArtifactError(f"the nodes are {shown(rows)}, not a list of up to {MOST_NODES}", where=WHERE)
    reader = _Reader(modules, mode or FakeTensorMode())
    for index, row in enumerate(rows):
        try:
            reader.read(Fields(row, f"{WHERE}, node {index}"))
        except ArtifactError as error:
            if error.where != WHERE or not isinstance(row, dict):
                raise
            where = f"{WHERE}, node {row.get('name')} ({row.get('target')})"
            raise ArtifactError(error.what, where=where, fix=error.fix) from error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ArtifactError(f"node {index} is malformed ({cause})", where=WHERE) from error
    reader.graph.lint()
    return reader.graph


class _Reader:
    """Adds one node after the other to a graph."""

    def __init__(self, modules: Collection[str], mode: FakeTensorMode):
        self.graph = fx.Graph()
        self._modules, self._mode = modules, mode
        self._nodes: dict[str, fx.Node] = {}
        self._values: dict[tuple[torch.dtype, tuple[int, ...]], torch.Tensor] = {}  # nobody changes a value in place
        self._facts: dict[str, Callable[[fx.Node, Fields], None]] = {
            "path": lambda node, row: set_path(node, row.text("path")),
            "sample": lambda node, row: _put_role(node, row, "sample"),
            "timestep": lambda node, row: _put_role(node, row, "timestep"),
            "channels": _put_channels,
            "weight_bits": _put_bits,
            "static_qparams": _put_static,
            "layer": _put_layer,
            "val": self._put_value,
        }

    def read(self, row: Fields) -> None:
        name = row.text("name")
        _check_name(name)
        if name in self._nodes:
            raise ArtifactError(f"{shown(name)} is there twice", where=WHERE)
        node = self._nodes[name] = self._node(name, row)
        set_path(node, "")
        for known, write in self._facts.items():
            if known in row:
                write(node, row)

    def _node(self, name: str, row: Fields) -> fx.Node:
        kind, target = row.text("op"), row.text("target")
        args = tuple(self._decode(arg) for arg in row.items("args"))
        kwargs: dict[str, Any] = {}
        if "kwargs" in row:
            kwargs = {key: self._decode(value) for key, value in row.object("kwargs").data.items()}
        for key in kwargs:
            _check_name(key)
        called: Callable[..., Any] | str = target
        if kind == "call_function":
            called = _operator(target)
        elif kind == "get_attr" or (kind == "call_module" and target in self._modules):
            check_path(target)
        elif kind in ("placeholder", "output"):
            _check_name(target)
        else:
            raise ArtifactError(f"node {shown(name)} has operation {shown(kind)}", where=WHERE)
        if kind != "call_function" and (kwargs or len(args) not in ARGUMENTS[kind]):
            raise ArtifactError(f"node {shown(name)} has arguments that a {kind} has not", where=WHERE)
        node = self.graph.create_node(kind, called, args, kwargs, name=name)
        if kind == "call_function":
            _check_call(node)
        return node

    def _decode(self, value: Any) -> Any:
        """The reverse of what `graph_to_json` does to one argument."""
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if isinstance(value, str) and not is_text(value):
            raise ArtifactError(f"an argument is {shown(value)}, not a line of text", where=WHERE)
        if not isinstance(value, dict):
            return value
        ((key, content),) = value.items()
        if key == "node":
            return self._nodes[content]
        if key == "tuple":
            return tuple(self._decode(item) for item in content)
        if key == "slice":
            return slice(*(self._decode(item) for item in content))
        if key == "float":
            return float(content)
        if key == "device":
            return torch.device(content)
        return _named(ENUMS[key], content)

    def _put_value(self, node: fx.Node, row: Fields) -> None:
        items = row.items("val")
        fields = Fields(dict(zip(("dtype", "shape"), items, strict=True)), row.where)
        shape = fields.items("shape")
        if len(shape) > MOST_DIMENSIONS or not all(is_whole(size, 0, LARGEST) for size in shape):
            raise ArtifactError("its value has a shape that is none", where=f"{WHERE}, node {node.name}")
        kind = (dtype_of(fields, "dtype"), tuple(shape))
        if kind not in self._values:
            with self._mode:
                self._values[kind] = torch.empty(shape, dtype=kind[0])
        set_value(node, self._values[kind])


def check_path(path: str) -> None:
    """Raises ArtifactError for what is not the path of a tensor or a module.

    torch.fx quotes the parts of a path that are no names, so none of them may end the quotes.
    """
    parts = path.split(".")
    legal = is_text(path) and not set(path) & set("\"'\\") and len(parts) <= DEEPEST
    if not legal or not all(parts) or any(each.startswith("__") for each in parts):
        raise ArtifactError(f"{shown(path)} is not the path of a tensor", where=WHERE)


def add_stored(root: fx.GraphModule, name: str, tensor: torch.Tensor) -> None:
    """Register a tensor of a file under its name. Raises ArtifactError where something has that name already."""
    check_path(name)
    if tensor.dtype not in TYPES or add_buffer(root, name, tensor) != name:
        raise ArtifactError(f"{name} cannot be the name of a tensor, or one of {tensor.dtype}", where=WHERE)


def _check_name(text: str) -> None:
    """torch.fx writes names into the code it generates for a graph, so only a Python name may pass."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ArtifactError(f"{shown(text)} is not a name", where=WHERE)


def _operator(name: str) -> Callable[..., Any]:
    row = ops.TABLE.get(name)
    if row is None or not row.stored:
        raise ArtifactError(
            f"{shown(name)} is not an operator that may be loaded",
            where=WHERE,
            fix="A newer qdiff_fx may know it; in a folder from somebody else it may be meant to do harm",
        )
    target = ops.resolve(row)
    if target is None:
        raise ArtifactError(
            f"this build of torch has no operator {name!r}", where=WHERE, fix="Use the torch it was saved with"
        )
    return target


def _check_call(node: fx.Node) -> None:
    """An operator of the list may still be asked to do more than compute."""
    check_arguments(node)
    reason = ops.why_not_stored(node)
    if reason:
        raise ArtifactError(f"{reason}, which a loaded graph may not", where=f"{WHERE}, node {node.name}")


def _put_role(node: fx.Node, row: Fields, role: Any) -> None:
    if row.flag(role) and node.op == "placeholder":
        put(node, Input(role))


def _put_channels(node: fx.Node, row: Fields) -> None:
    channels = row.items("channels")
    if len(channels) != 2 or not all(is_whole(each, 0, LARGEST) for each in channels) or channels[0] >= channels[1]:
        raise ArtifactError("its channels are not a first and an end", where=row.where)
    put(node, Part((channels[0], channels[1])))


def _put_bits(node: fx.Node, row: Fields) -> None:
    _only_on(node.op == "get_attr", "weight_bits", row)
    put(node, WeightCodes(row.whole("weight_bits", WEIGHT_BITS[0], WEIGHT_BITS[-1])))


def _put_layer(node: fx.Node, row: Fields) -> None:
    _only_on(node.op == "call_function" and _kind(node) in (Kind.LAYER, Kind.ATTENTION), "layer", row)
    put(node, QuantizedLayer(layer_from_json(row.object("layer"))))


def _put_static(node: fx.Node, row: Fields) -> None:
    _only_on(_kind(node) is Kind.QUANTIZE, "static_qparams", row)
    items = row.items("static_qparams")
    if len(items) != 2 or not is_whole(items[1], -(1 << 16), 1 << 16):
        raise ArtifactError("its static_qparams are not a scale and a zero-point", where=row.where)
    check_scale(items[0], row.where)
    put(node, StaticQParams(*items))


def _kind(node: fx.Node) -> Kind | None:
    found = ops.row_of(node.target)
    return found.kind if found else None


def _only_on(right: bool, name: str, row: Fields) -> None:
    if not right:
        raise ArtifactError(f"{name} is said of a node that is none", where=row.where)


def _named(kind: type, name: object) -> Any:
    value = getattr(torch, name) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(value, kind) or (kind is torch.dtype and name not in DTYPES):
        raise ArtifactError(f"{shown(name)} is not a {kind.__name__} of networks", where=WHERE)
    return value
