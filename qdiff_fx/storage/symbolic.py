"""Values of a graph that was read from a file: what every node produces, with the sizes open that may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir.annotations import any_value, example_size, set_value, value_or_none
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.signature.inputs import TensorInput


def open_sizes(gm: fx.GraphModule, inputs: Sequence[TensorInput]) -> None:
    """Compute the value of every node anew, in place, from placeholders whose open sizes are symbols.

    A file holds the sizes of the captured example alone; which of them were open is known from the signature.

    Raises:
        ArtifactError: the graph computes something else than the file says.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    symbols: dict[str, int | torch.SymInt] = {}
    specs = iter(inputs)
    for node in gm.graph.nodes:
        stored = value_or_none(node)
        if node.op == "placeholder":
            assert stored is not None
            found = _placeholder(mode, symbols, next(specs), list(stored.shape))
        elif node.op == "get_attr":
            found = mode.from_tensor(get_attr_tensor(gm, node), static_shapes=True)
        elif node.op == "call_module":  # an observer hands on what it sees
            found = any_value(node.args[0])
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), any_value)
            with mode, enable_python_dispatcher(), torch.no_grad():
                found = node.target(*args, **kwargs)
        else:
            continue
        set_value(node, found)
        if stored is not None and _kind(found) != (stored.dtype, list(stored.shape)):
            raise ArtifactError(
                f"node {node.name} computes {_kind(found)}, not {stored.dtype} {list(stored.shape)}",
                where="graph.json",
                fix="Save the network again",
            )


def _placeholder(
    mode: FakeTensorMode, symbols: dict[str, int | torch.SymInt], spec: TensorInput, sizes: list[int]
) -> torch.Tensor:
    shape: list[Any] = []
    for dim, size in zip(spec.dims, sizes, strict=True):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        if dim.symbol not in symbols:
            assert mode.shape_env is not None
            source, hint = ConstantSource(dim.symbol), size // dim.multiple
            symbol = mode.shape_env.create_symbol(hint, source, DimDynamic.DYNAMIC, do_not_specialize_zero_one=True)
            symbols[dim.symbol] = mode.shape_env.create_symintnode(symbol, hint=hint, source=source)
        shape.append(symbols[dim.symbol] * dim.multiple)
    with mode:
        return torch.empty(shape, dtype=spec.dtype)


def _kind(found: object) -> tuple[torch.dtype, list[int]] | None:
    if not isinstance(found, torch.Tensor):
        return None
    return found.dtype, [example_size(size) for size in found.shape]
