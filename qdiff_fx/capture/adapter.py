"""The module that is exported: flat tensors in, flat tensors out, the network in the middle.

A size that may change as `multiple * n` (a height the network halves three times is 8 * n) enters as two
dimensions, (n, multiple), which the adapter merges. Every size inside the network then is a plain product,
and export has nothing to assume, guess or solve about divisibility. `unfold_inputs` undoes it in the graph.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from qdiff_fx.ir.annotations import any_value, describe, exported_module, put, set_value, value
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import Input, Role
from qdiff_fx.signature.inputs import Size, TensorInput
from qdiff_fx.signature.outputs import flatten_output

NETWORK = "network"
Rebuild = Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]


class Adapter(nn.Module):
    """Calls `network` with the nested arguments of the example, tensors replaced by the flat inputs."""

    def __init__(
        self,
        network: nn.Module,
        arguments: Mapping[str, Any],
        inputs: Sequence[TensorInput],
        names: dict[str, str] | None = None,
    ):
        """`names` is told which symbol of export's stands for which of our sizes."""
        super().__init__()
        self.network = network
        self.inputs = tuple(inputs)
        self._tell: Callable[[str, str], object] = ({} if names is None else names).setdefault
        # A closure, because export looks into the containers among a module's attributes.
        self._rebuild: Rebuild = lambda tensors: {
            name: _rebuild(name, value, tensors) for name, value in arguments.items()
        }

    def forward(self, *folded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Folded inputs (see `fold`), in the order of `inputs`; the tensors of the network's result."""
        self._tie(folded)
        return tuple(flatten_output(self.run(*map(_merge, folded, self.inputs)))[0])

    def run(self, *tensors: torch.Tensor) -> Any:
        """The network's own result on unfolded inputs."""
        named = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)}
        return self.network(**self._rebuild(named))

    def _tie(self, folded: Sequence[torch.Tensor]) -> None:
        """Tell export which sizes are the same number, before the network's operators ask."""
        known: dict[str, Any] = {}
        for spec, tensor in zip(self.inputs, folded, strict=True):
            for symbol, position in symbol_positions(spec).items():
                size = tensor.shape[position]
                self._tell(str(size), symbol)
                torch._check(known.setdefault(symbol, size) == size)


def fold(spec: TensorInput, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a folded input: (batch, 4, 8*height) -> (batch, 4, height, 8)."""
    shape: list[int] = []
    for dim in spec.dims:
        if isinstance(dim, int):
            shape.append(dim)
        else:
            shape += [sizes[dim.symbol]] + ([dim.multiple] if dim.multiple > 1 else [])
    return tuple(shape)


def symbol_positions(spec: TensorInput) -> dict[str, int]:
    """Symbol -> its position in the folded shape."""
    positions: dict[str, int] = {}
    position = 0
    for dim in spec.dims:
        if isinstance(dim, Size):
            positions[dim.symbol] = position
        position += 2 if _is_folded(dim) else 1
    return positions


def _is_folded(dim: int | Size) -> bool:
    return isinstance(dim, Size) and dim.multiple > 1


def _merge(tensor: torch.Tensor, spec: TensorInput) -> torch.Tensor:
    if not any(_is_folded(dim) for dim in spec.dims):
        return tensor
    shape, position = [], 0
    for dim in spec.dims:
        shape.append(tensor.shape[position] * (dim.multiple if isinstance(dim, Size) else 1))
        position += 2 if _is_folded(dim) else 1
    return tensor.reshape(shape)


def _rebuild(name: str, value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The example's argument with its tensors exchanged; containers are new, so forward may consume them."""
    if name in tensors:
        return tensors[name]
    if isinstance(value, Mapping):
        return {key: _rebuild(f"{name}.{key}", part, tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_rebuild(f"{name}.{index}", part, tensors) for index, part in enumerate(value)]
        named = hasattr(value, "_fields")
        return type(value)(*parts) if named else type(value)(parts) if type(value) in (list, tuple) else tuple(parts)
    if is_dataclass(value):
        twin = copy.copy(value)
        for each in fields(value):
            part = _rebuild(f"{name}.{each.name}", getattr(value, each.name), tensors)
            object.__setattr__(twin, each.name, part)  # of a frozen one too
        return twin
    return value


def module_path(node: fx.Node) -> str:
    """The module of the network that made a node of the exported graph, "" for the network itself.

    Without the call counter ("block@1") that export gives to a module called twice.
    """
    parts = [part.split("@")[0] for part in exported_module(node).split(".")]
    return ".".join(parts[1:]) if parts[0] == NETWORK else ""


def unfold_inputs(graph: fx.Graph, inputs: Sequence[TensorInput]) -> None:
    """Replace the folded placeholders by the network's own, named and marked with their role."""
    folded = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(iter(graph.nodes))
    for node, spec in zip(folded, inputs, strict=True):
        with graph.inserting_before(first):
            unfolded = graph.placeholder(spec.name.replace(".", "_"))
        # Of an input that nobody reads there is no merging reshape whose value it could take.
        describe(unfolded, value=_merge(value(node), spec))
        if spec.role:
            put(unfolded, Input(cast(Role, spec.role)))
        if any(_is_folded(dim) for dim in spec.dims):
            _replace_folded(node, unfolded, spec)
        else:
            node.replace_all_uses_with(unfolded)
    for node in folded:
        graph.erase_node(node)


def _replace_folded(folded: fx.Node, unfolded: fx.Node, spec: TensorInput) -> None:
    """The merging reshape becomes the placeholder; sizes read from the folded shape are divided back."""
    for user in list(folded.users):
        if is_op(user, torch.ops.aten.sym_size.int):
            _divide_size(user, unfolded, spec)
        else:
            set_value(unfolded, value(user))
            user.replace_all_uses_with(unfolded)
            user.graph.erase_node(user)


def _divide_size(read: fx.Node, unfolded: fx.Node, spec: TensorInput) -> None:
    position = 0
    for index, dim in enumerate(spec.dims):
        if position == read.args[1]:
            read.args = (unfolded, index)
            if isinstance(dim, Size) and dim.multiple > 1:
                _divide(read, dim.multiple, unfolded)
            return
        position += 2 if _is_folded(dim) else 1
    raise AssertionError(f"{read.name} reads a size that is a constant")


def _divide(read: fx.Node, multiple: int, unfolded: fx.Node) -> None:
    count = any_value(read)
    with read.graph.inserting_after(read):
        divided = read.graph.call_function(operator.floordiv, (read, multiple))
    describe(divided, value=count)
    read.replace_all_uses_with(divided, delete_user_cb=lambda user: user is not divided)
    set_value(read, count * multiple)
