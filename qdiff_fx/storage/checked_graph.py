"""A loaded graph is run once without elements: what every node produces is computed, not believed.

On `meta` tensors, which have a type and sizes and no memory. Whatever torch has to say against a call it says here,
and the node is named; no result may be absurdly large; what the file says of a node has to be true, as the passes that
run after loading go by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import fact, set_value, value_or_none
from qdiff_fx.ir.arguments import function_of, operator_of
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import Input, WeightCodes
from qdiff_fx.signature import CallSignature, Size, TensorInput
from qdiff_fx.signature.outputs import output_names
from qdiff_fx.storage.checked_arguments import target_name
from qdiff_fx.storage.checked_numbers import check_numbers

# Of one result at the sizes the graph was captured with: 256 GiB of float32, or the square of the largest input, which
# is what attention over all of it takes. A capture stands on sizes of its own, far beyond those of any example.
MOST_ELEMENTS = 1 << 36
MOST_ADDRESSED = 1 << 62
# Of one computed from the stored tensors alone, or from nothing: such values are made while loading.
MOST_CONSTANT_ELEMENTS = 1 << 26
MOST_RESULTS = 1 << 14
WHERE = "graph.json"
_UNSEEN: Any = object()


def check_graph(gm: fx.GraphModule, signature: CallSignature, mode: FakeTensorMode) -> None:
    """Check that the graph can be run at the sizes it was captured with, and takes and returns what is said of it.

    Nodes of which the file does not say what they produce get that as their value.

    Args:
        gm: the graph, its tensors in place.
        signature: of the same file.
        mode: that the values of its nodes belong to.

    Raises:
        ArtifactError: it cannot be run, or the file says of a node what is not so.
    """
    check_numbers(gm.graph)
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(signature.inputs):
        raise ArtifactError(f"it takes {len(inputs)} tensors, its signature says {len(signature.inputs)}", where=WHERE)
    sizes: dict[str, int] = {}
    for node, spec in zip(inputs, signature.inputs, strict=True):
        _check_input(node, spec, sizes, mode)
    _Run(gm, mode).all()
    _check_output(gm.graph, len(output_names(signature.output)))


def _check_input(node: fx.Node, spec: TensorInput, sizes: dict[str, int], mode: FakeTensorMode) -> None:
    """The example's sizes are some that a call may have."""
    where, role = f"{WHERE}, node {node.name}", fact(node, Input)
    if (role.role if role else "") != spec.role:
        raise ArtifactError(f"it is {role.role if role else 'conditioning'}, its signature says otherwise", where=where)
    stored = value_or_none(node)
    if stored is None:
        shape = [dim if isinstance(dim, int) else sizes.setdefault(dim.symbol, 2) * dim.multiple for dim in spec.dims]
        with mode:
            stored = torch.empty(shape, dtype=spec.dtype)
        set_value(node, stored)
    fits = stored.dtype == spec.dtype and stored.dim() == len(spec.dims)
    if not fits or not all(_is_size_of(dim, size, sizes) for dim, size in zip(spec.dims, stored.shape, strict=True)):
        raise ArtifactError(
            f"it is {stored.dtype} {list(stored.shape)}, its signature says {spec.dtype} [{_text(spec)}]", where=where
        )


def _is_size_of(dim: int | Size, size: int, sizes: dict[str, int]) -> bool:
    if isinstance(dim, int):
        return size == dim
    count, rest = divmod(size, dim.multiple)
    return not rest and count >= 1 and sizes.setdefault(dim.symbol, count) == count


def _text(spec: TensorInput) -> str:
    return ", ".join(map(str, spec.dims))


def _check_output(graph: fx.Graph, expected: int) -> None:
    outputs = graph.find_nodes(op="output")
    results = outputs[0].args[0] if len(outputs) == 1 and len(outputs[0].args) == 1 else None
    tensors = results if isinstance(results, list | tuple) else ()
    if len(tensors) != expected or not all(isinstance(each, fx.Node) and _is_tensor(each) for each in tensors):
        raise ArtifactError(f"it does not return the {expected} tensors that its signature names", where=WHERE)


def _is_tensor(node: fx.Node) -> bool:
    return value_or_none(node) is not None


class _Run:
    """One run of a graph; calls that are alike, of which a quantized network has hundreds, are made once."""

    def __init__(self, gm: fx.GraphModule, mode: FakeTensorMode):
        self.gm, self._mode = gm, mode
        self.results: dict[fx.Node, Any] = {}
        self._known: dict[object, Any] = {}
        self._constant: set[fx.Node] = set()
        inputs = [value_or_none(node) for node in gm.graph.find_nodes(op="placeholder")]
        largest = max((each.numel() for each in inputs if each is not None), default=0)
        self._most = min(max(MOST_ELEMENTS, largest**2), MOST_ADDRESSED)

    @torch.no_grad()
    def all(self) -> None:
        for node in self.gm.graph.nodes:
            if node.op != "output":
                found = self.results[node] = self._result(node)
                self._check(node, found)

    def _result(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return _like(value_or_none(node))
        if node.op == "get_attr":
            codes = fact(node, WeightCodes)
            if codes is not None and codes.packed_shape is not None:
                return torch.empty(codes.packed_shape, dtype=torch.int8, device="meta")
            return _like(get_attr_tensor(self.gm, node))
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.results.__getitem__)
        if node.op == "call_module":  # an observer hands on what it sees
            return args[0]
        key = _key((node.target, args, kwargs))
        found = self._known.get(key, _UNSEEN)
        if found is _UNSEEN:
            try:
                found = self._known[key] = self._call(node, args, kwargs)
            except ArtifactError:
                raise
            except Exception as error:  # whatever torch raises
                cause = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ArtifactError(f"it cannot be computed ({cause})", where=_place(node)) from error
        return found

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        _check_pieces(node, args, kwargs)
        _check_quotient(node, args, kwargs)
        if node.target is torch.ops.aten.item.default:
            return 1.0 if args[0].is_floating_point() else 1  # only the call knows it
        target = function_of(node)
        args, kwargs = _on_meta(target, args, dict(kwargs))
        try:
            return target(*args, **kwargs)
        except NotImplementedError:
            return self._as_captured(target, args, kwargs)

    def _as_captured(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The way torch.export computed it, for operators that know no meta tensors."""
        with FakeTensorMode():
            args, kwargs = _map_tensors(lambda each: torch.empty_like(each, device="cpu"), (args, kwargs))
            found = target(*args, **{**kwargs, **({"device": torch.device("cpu")} if "device" in kwargs else {})})
        return _map_tensors(_like, found)

    def _check(self, node: fx.Node, found: Any) -> None:
        if node.op == "get_attr" or (ops.is_pure(node) and self._constant.issuperset(node.all_input_nodes)):
            self._constant.add(node)
        most = MOST_CONSTANT_ELEMENTS if node in self._constant and node.op != "get_attr" else self._most
        for each in _tensors(found):
            if each.numel() > most:
                raise ArtifactError(
                    f"its result of {list(each.shape)} has {each.numel()} elements, more than {most}",
                    where=_place(node),
                )
        if isinstance(found, int) and abs(found) > self._most:
            raise ArtifactError("its result is a number beyond all sizes", where=_place(node))
        stored = value_or_none(node)
        if stored is None:
            self._describe(node, found)
        elif not isinstance(found, torch.Tensor) or (found.dtype, found.shape) != (stored.dtype, stored.shape):
            computed = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else "no tensor"
            raise ArtifactError(
                f"it is {computed}, the graph expects {stored.dtype} {list(stored.shape)}",
                where=_place(node),
                fix="Save the network again",
            )

    def _describe(self, node: fx.Node, found: Any) -> None:
        if isinstance(found, torch.Tensor):
            with self._mode:
                set_value(node, torch.empty(found.shape, dtype=found.dtype))


def _place(node: fx.Node) -> str:
    return f"{WHERE}, node {node.name}" + (f" ({target_name(node)})" if node.op == "call_function" else "")


def _like(tensor: torch.Tensor | None) -> torch.Tensor:
    """The same without elements."""
    assert tensor is not None
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _tensors(each)


def _map_tensors(change: Callable[[torch.Tensor], torch.Tensor], found: Any) -> Any:
    return fx.node.map_aggregate(found, lambda each: change(each) if isinstance(each, torch.Tensor) else each)


def _key(value: Any) -> object:
    """Equal for calls that produce alike."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.stride())
    if isinstance(value, list | tuple):
        return (len(value), *map(_key, value))
    if isinstance(value, Mapping):
        return tuple((name, _key(each)) for name, each in value.items())
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return (type(value), value)  # 1, 1.0 and True are equal


def _on_meta(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with every result on the meta device, wherever it would be."""
    if isinstance(target, torch._ops.OpOverload):
        for index, each in enumerate(target._schema.arguments):
            if each.name == "device":
                if index < len(args):
                    args = (*args[:index], torch.device("meta"), *args[index + 1 :])
                else:
                    kwargs["device"] = torch.device("meta")
    return args, kwargs


def _check_pieces(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Operators that cut a tensor make one result after the other: not a million of them."""
    row = ops.row_of(node.target)
    name = row.name if row else ""
    if name not in _PIECES:
        return
    by = _PIECES[name]
    names = (each.name for each in operator_of(node)._schema.arguments)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    pieces = given[by] if by not in ("dim", "split_size") else _length(args[0], given.get("dim", 0))
    if by == "split_size":
        pieces //= max(given[by], 1)
    if pieces > MOST_RESULTS:
        raise ArtifactError(f"it cuts a tensor into {pieces} pieces, more than {MOST_RESULTS}", where=_place(node))


def _check_quotient(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """The smallest whole number divided by -1 stops the process, where torch leaves it to the processor."""
    row = ops.row_of(node.target)
    if row is None or row.packet != "aten.div" or kwargs.get("rounding_mode") != "trunc":
        return
    divisor = args[1]
    whole = all(isinstance(each, int) or not (isinstance(each, float) or _has_fractions(each)) for each in args[:2])
    if whole and (not isinstance(divisor, int) or divisor == -1):
        raise ArtifactError(
            "it divides whole numbers by some that may be -1, and cuts off",
            where=_place(node),
            fix="Round down instead, or divide by a number that is not -1",
        )


def _has_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _length(tensor: torch.Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.dim() else 1


# The argument that says into how many pieces an operator cuts, or how long they are; "dim": all are of length 1.
_PIECES = {
    "aten.chunk.default": "chunks",
    "aten.unsafe_chunk.default": "chunks",
    "aten.split.Tensor": "split_size",
    "aten.unsafe_split.Tensor": "split_size",
    "aten.tensor_split.sections": "sections",
    "aten.hsplit.int": "sections",
    "aten.vsplit.int": "sections",
    "aten.unbind.int": "dim",
}
