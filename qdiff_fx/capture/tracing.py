"""nn.Module -> fx graph: what to leave open, what to do when export will not, and the call signature."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from qdiff_fx.capture.adapter import Adapter, fold, symbol_positions
from qdiff_fx.capture.example import Example, read_example
from qdiff_fx.capture.flat import flat_module
from qdiff_fx.capture.guards import Watch
from qdiff_fx.capture.opening import Plan, trace_exactly, trace_open
from qdiff_fx.capture.plain import require_plain
from qdiff_fx.capture.rows import unrelated_rows
from qdiff_fx.capture.shadow import CallPath, shadow
from qdiff_fx.capture.sizes import SmallestSizes, exact_inputs, strides, traced_sizes
from qdiff_fx.errors import CaptureError, QDiffError
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.shapes import same_sizes
from qdiff_fx.signature.attributes import READ_BY_PIPELINES
from qdiff_fx.signature.call import CallSignature
from qdiff_fx.signature.inputs import BATCH, Constant, Size, TensorInput
from qdiff_fx.signature.outputs import Structure, flatten_output

_aten = torch.ops.aten
_BATCHED_RANKS = {
    3: (_aten.conv1d.default, _aten.conv_transpose1d.default),
    4: (_aten.conv2d.default, _aten.conv2d.padding, _aten.conv_transpose2d.input),
    5: (_aten.conv3d.default, _aten.conv_transpose3d.input),
}


@dataclass(frozen=True)
class CapturedGraph:
    """module: flat ATen graph; see `capture`. signature: how a call of the network maps to it."""

    module: fx.GraphModule
    signature: CallSignature


def capture(model: nn.Module, example_inputs: Mapping[str, Any], *, dynamic: bool = True) -> CapturedGraph:
    """Capture `model` as a flat graph of ATen operators.

    Placeholders are the call's tensors in the order of `signature.inputs`, get_attr nodes read parameters at
    their names in the model, the output is a flat tuple of tensors. Every node has meta["val"] (fake tensor)
    and meta["path"] (the module that made it). The batch may be any size; spatial and token sizes may change
    as far as the network allows, see `signature.inputs`.

    Args:
        model: in eval mode; it is not changed, and the graph's parameters share its memory.
        example_inputs: arguments of its forward, by name.
        dynamic: False captures for the example's exact sizes.

    Raises:
        InputError: the example does not fit the model's forward.
        CaptureError: the model is in training mode, has a LoRA or hooks beside it, or torch.export cannot trace it.
    """
    model = getattr(model, "_orig_mod", model)
    require_plain(model)
    example = read_example(model, example_inputs)
    factors, output = _probe(model, example)
    trace = partial(_trace, model, example)
    plan = Plan(example, factors)
    traced = trace_open(trace, plan) if dynamic else trace_exactly(trace, example)
    module = flat_module(traced.program, traced.inputs)
    if tables := unrelated_rows(module, traced.inputs, example):
        apart = trace_open(trace, replace(plan, rows=dict.fromkeys(tables)))
        # Code whose result nobody reads, and the graph lacks, may still want as many rows as samples.
        if _leaves_batch_open(apart.inputs):
            traced, module = apart, flat_module(apart.program, apart.inputs)
    inputs = traced.inputs
    _require_batch(module, inputs)
    signature = CallSignature(
        parameters=example.parameters,
        inputs=inputs,
        constants=example.constants,
        output=output,
        dtype=_dtype(model),
        config=_json_config(getattr(model, "config", None)),
        attributes=_read_attributes(model),
        batched_outputs=_batched_outputs(module, inputs),
    )
    return CapturedGraph(module, signature)


def _leaves_batch_open(inputs: Sequence[TensorInput]) -> bool:
    sample = next(spec for spec in inputs if spec.role == "sample")
    return sample.dims[:1] == (Size(BATCH),)


def _batched_outputs(module: fx.GraphModule, inputs: Sequence[TensorInput]) -> tuple[bool, ...]:
    """For each output whether its first dimension is the sample's."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    sample = next(node for node, spec in zip(placeholders, inputs, strict=True) if spec.role == "sample")
    batch = value(sample).shape[:1]
    (outputs,) = module.graph.output_node().args
    return tuple(same_sizes(value(node).shape[:1], batch) for node in cast("Sequence[fx.Node]", outputs))


def _require_batch(module: fx.GraphModule, inputs: Sequence[TensorInput]) -> None:
    """Raises CaptureError where the sample reaches a layer that takes one image without a batch as well."""
    sample = next(spec for spec in inputs if spec.role == "sample")
    for node in module.graph.nodes:
        rank = next((rank for rank, layers in _BATCHED_RANKS.items() if is_op(node, *layers)), 0)
        if rank and len(sample.dims) == rank - 1 and value(node.args[0]).dim() == rank - 1:
            raise CaptureError(
                f"is a single one of shape ({', '.join(map(str, sample.dims))}), without a batch dimension",
                where=f"argument '{sample.name}'",
                fix=f"Pass a batch of one, {sample.name}[None], in the example and in every call",
            )


def _probe(model: nn.Module, example: Example) -> tuple[tuple[int, ...], Structure]:
    """Run the example on fake tensors: the strides of the network, and the structure of its result.

    Also the place where an example that does not run, or code that needs values, shows with its module.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # brings all of sympy

    network = shadow(model)
    smallest = SmallestSizes(network, example.tensors[example.sample])
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with _errors_name_the_module(network), mode, torch.no_grad():
        fake = [mode.from_tensor(tensor, static_shapes=True) for tensor in example.tensors.values()]
        result = Adapter(network, example.arguments, exact_inputs(example)).run(*fake)
    tensors, output = flatten_output(result)
    if not tensors:
        raise CaptureError("the network returns no tensor", fix="Return what it predicts")
    return strides(example.tensors[example.sample], smallest.sizes), output


def _trace(model: nn.Module, example: Example, inputs: tuple[TensorInput, ...], watch: Watch) -> ExportedProgram:
    network = shadow(model)
    adapter = Adapter(network, example.arguments, inputs, watch.names)
    sizes = traced_sizes(inputs, example)
    folded = tuple(
        torch.zeros(fold(spec, sizes), dtype=spec.dtype, device=example.tensors[spec.name].device) for spec in inputs
    )
    # AUTO, not a named Dim: whatever export assumes comes back as a guard, and a guard is never an error.
    open_sizes = tuple(dict.fromkeys(symbol_positions(spec).values(), Dim.AUTO) for spec in inputs)
    with (
        _errors_name_the_module(network) as running,
        torch.no_grad(),
        warnings.catch_warnings(),
        watch.watching(running),
    ):
        warnings.simplefilter("ignore")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(adapter, folded, dynamic_shapes=(open_sizes,), strict=False)


@contextmanager
def _errors_name_the_module(network: nn.Module) -> Iterator[Callable[[], str]]:
    """Turn what tracing raises into a CaptureError that names the innermost module that was running.

    Interrupts and a lack of memory say nothing about the network: they pass. Yields what tells the module that runs.
    """
    path = CallPath(network)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # the traceback it prints is the one the error below is raised from
    try:
        yield path.deepest
    except (QDiffError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        raise CaptureError(
            f"torch.export cannot trace it: {cause}",
            where=path.deepest() or type(network).__name__,
            fix=_fix(error),
        ) from error
    finally:
        log.setLevel(level)


def _fix(error: Exception) -> str:
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if isinstance(error, GuardOnDataDependentSymNode):
        return "The code branches on the value of a tensor: use tensor operations such as torch.where instead"
    return "Check that the model runs on the example inputs, and see the error above for the line it stops at"


def _dtype(model: nn.Module) -> torch.dtype:
    """Of the first floating-point parameter."""
    floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(floating, torch.get_default_dtype())


def _json_config(config: Any) -> dict[str, Any]:
    """The entries of a network's config that JSON can hold, tuples as lists."""
    if not isinstance(config, Mapping):
        of_transformers = getattr(config, "to_dict", None)
        known = of_transformers() if callable(of_transformers) and not isinstance(config, type) else {}
        # Where it was loaded from is nobody's business.
        config = {name: value for name, value in known.items() if not name.startswith("_")}
    kept = {str(key): _json_value(value) for key, value in config.items()}
    return {key: value for key, value in kept.items() if value is not _NOT_JSON}


_NOT_JSON = object()


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_json_value(item) for item in value]
        return _NOT_JSON if _NOT_JSON in items else items
    return _json_config(value) if isinstance(value, Mapping) else _NOT_JSON


def _read_attributes(model: nn.Module) -> dict[str, Any]:
    found = {}
    for path in READ_BY_PIPELINES:
        value: Any = model
        for name in path.split("."):
            value = getattr(value, name, None)
        if isinstance(value, Constant):
            found[path] = value
    return found
