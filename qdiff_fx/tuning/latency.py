"""What each choice of each layer costs in time on this machine: the layer lowered and timed by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.base import weight_of
from qdiff_fx.backends.common.options import known_options
from qdiff_fx.ir.annotations import put, require
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import QuantizedLayer, layer_info, quantized_layers
from qdiff_fx.ir.sample_flow import depends_on_sample
from qdiff_fx.ir.subgraph import Subgraph, subgraph
from qdiff_fx.tuning.choice import FLOAT, Choice
from qdiff_fx.tuning.layer_substitution import LayerSubstitution, Run, result_of
from qdiff_fx.tuning.timing import Step, take_turns
from qdiff_fx.tuning.units import Unit

qd = torch.ops.quantized_decomposed
QUANTIZE = (qd.quantize_per_tensor.default, qd.quantize_per_tensor.tensor)

OTHER_WEIGHTS = 64 << 20  # bytes, more than what two cores have of most processors' caches
ROUNDS = 30
MEMBERS = 4  # of a kind of layers

BYTES, NIBBLES, WIDE = Choice(8), Choice(4), Choice(8, wide=True)
"""Kernels hold up to 4 bits two to a byte and more as bytes: two times to measure, not one per width."""


def timed_as(choice: Choice) -> Choice:
    """Which of the measured times is that of a choice."""
    if choice == FLOAT or choice.wide:
        return WIDE if choice.wide else FLOAT
    return NIBBLES if choice.weight_bits <= NIBBLES.weight_bits else BYTES


def measure_layers(
    substitution: LayerSubstitution,
    offered: Mapping[Unit, tuple[Choice, ...]],
    tensors: list[Tensor],
    backend: str,
    progress: bool,
) -> dict[str, dict[Choice, float]]:
    """path → what times its choices (`timed_as`) → seconds of the unit's layers by themselves.

    They take turns, each from weights that no cache holds, and right behind a layer like it, as a network calls them:
    all other weights passed through the caches since the last time, and the kernel was in use a moment ago.

    Layers of the same shapes take the same time, so some of them are measured for all. Choosing among the times of
    single layers would be choosing among their errors.

    Layers that depend on the timestep or on the conditioning alone are remembered by the backend, and count nothing.
    """
    run = substitution.on(tensors)
    kinds: dict[str, list[tuple[Unit, str]]] = {}
    for unit, name in _timed_layers(substitution, offered):
        kinds.setdefault(_kind(substitution, name, run), []).append((unit, name))
    total = {unit.path: dict.fromkeys(map(timed_as, choices), 0.0) for unit, choices in offered.items()}
    for alike in tqdm(kinds.values(), desc="timing", unit="kind of layer", disable=not progress):
        choices = {BYTES}.union(*(total[unit.path] for unit, _ in alike))
        seconds = _kind_seconds(substitution, [name for _, name in alike], sorted(choices), run, backend)
        for unit, _ in alike:
            for choice in total[unit.path]:
                total[unit.path][choice] += seconds[choice]
    return total


def _timed_layers(substitution: LayerSubstitution, units: Iterable[Unit]) -> Iterator[tuple[Unit, str]]:
    for unit in units:
        for name in unit.layers:
            if depends_on_sample(substitution.float_graph, substitution.float_node(name)):
                yield unit, name


def _kind(substitution: LayerSubstitution, name: str, run: Run) -> str:
    """What decides how long a layer takes: operator, shapes, arguments, bits of its inputs."""
    node, info = substitution.float_node(name), layer_info(substitution.quantized_node(name))
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda each: _shape(run.values[each]))
    return f"{node.target} {arguments} {info.act_bits} {info.softmax_bits}"


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else str(value)


def _kind_seconds(
    substitution: LayerSubstitution, names: list[str], choices: list[Choice], run: Run, backend: str
) -> dict[Choice, float]:
    """The median of some layers' rounds, of what `BYTES` takes and of what others take more in the same round."""
    every = range(0, len(names), -(-len(names) // MEMBERS))
    rounds = [_layer_seconds(substitution, names[index], choices, run, backend) for index in every]
    pooled = {choice: [seconds for each in rounds for seconds in each[choice]] for choice in choices}
    base = median(pooled[BYTES])
    return {
        choice: max(base + median(a - b for a, b in zip(times, pooled[BYTES], strict=True)), 0.0)
        for choice, times in pooled.items()
    }


def _layer_seconds(
    substitution: LayerSubstitution, name: str, choices: list[Choice], run: Run, backend: str
) -> dict[Choice, list[float]]:
    """One layer, round by round: in float from float inputs, and quantized from codes, where the backend takes them.

    In the whole network codes are written by the kernel before, at the price of float values. The second code of a wide
    input is not, so it is made from those here.
    """
    values = {each.name: value for each, value in run.values.items()}
    subgraphs = {}
    for choice in choices:
        if choice == FLOAT:
            subgraphs[choice] = subgraph(
                substitution.float_graph, [substitution.float_node(name)], lambda each: each.op != "get_attr"
            )
        elif choice == WIDE:
            layer = substitution.quantized_node(name, wide=True)
            subgraphs[choice] = substitution.quantized_subgraph(result_of(layer), wide=True)
        else:
            subgraphs[choice] = _at_bits(_from_codes(substitution, name, values, backend), choice.weight_bits)
    modules: dict[Choice, Step] = {key: _lowered(each, backend) for key, each in subgraphs.items()}
    likes: dict[Choice, Step] = {key: _lowered(each, backend) for key, each in subgraphs.items()}
    inputs = {key: [_as_kernels_write(values[each]) for each in piece.inputs] for key, piece in subgraphs.items()}

    def in_between(key: Choice) -> None:
        _other_weights().add_(1)
        likes[key](*inputs[key])

    return take_turns(modules, inputs, ROUNDS, in_between)


def _from_codes(substitution: LayerSubstitution, name: str, values: dict[str, Any], backend: str) -> Subgraph:
    """The quantized layer behind its quantizers, or with them for a backend that makes its own; `values` gets codes."""
    layer = substitution.quantized_node(name)
    piece = substitution.quantized_subgraph(layer, lambda each: is_op(each, *QUANTIZE))
    (alone,) = quantized_layers(piece.module)
    if get_backend(backend).supports(alone):
        return substitution.quantized_subgraph(layer)
    for quantizer in [each for each in layer.graph.nodes if each.name in piece.inputs and each.name not in values]:
        start = substitution.quantized_subgraph(quantizer)
        with torch.no_grad():
            (values[quantizer.name],) = start.module(*(values[each] for each in start.inputs))
    return piece


@cache
def _other_weights() -> Tensor:
    return torch.zeros(OTHER_WEIGHTS // 4)


def _as_kernels_write(value: Any) -> Any:
    """Images channels last: else every call would begin with a conversion that the whole network does not make."""
    image = isinstance(value, torch.Tensor) and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if image else value


def _lowered(piece: Subgraph, backend: str) -> nn.Module:
    chosen = get_backend(backend)
    return chosen.lower(piece.module, known_options(chosen, reuse=False)).module


def _at_bits(piece: Subgraph, bits: int) -> Subgraph:
    """The layer with codes of other bits; which codes they are makes no difference to time."""
    for layer in quantized_layers(piece.module):
        weight = weight_of(layer)
        if weight is None:
            continue
        known = require(layer, QuantizedLayer)
        put(layer, replace(known, info=replace(known.info, weight_bits=bits)))
        codes = operand(weight)
        owner, _, leaf = str(codes.target).rpartition(".")
        holder = piece.module.get_submodule(owner)
        limit = 1 << (bits - 1)
        setattr(holder, leaf, getattr(holder, leaf).clamp(-limit, limit - 1))
    return piece
