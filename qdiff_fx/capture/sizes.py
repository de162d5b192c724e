"""Which sizes of the inputs a capture leaves open, and what it then assumed about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils._sympy.functions import Min

from qdiff_fx.capture.adapter import symbol_positions
from qdiff_fx.capture.example import Example
from qdiff_fx.ir.annotations import any_value
from qdiff_fx.signature.inputs import BATCH, Size, TensorInput

TOKENS = ".tokens"
_AXES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}


class SmallestSizes:
    """Watches a module tree run and keeps the smallest size of every spatial axis of the sample."""

    def __init__(self, network: nn.Module, sample: torch.Tensor):
        self.sizes = list(sample.shape[2:])
        for module in network.modules():
            module.register_forward_hook(self._look)

    def _look(self, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.dim() == len(self.sizes) + 2:
            self.sizes = [min(pair) for pair in zip(self.sizes, output.shape[2:], strict=True)]


def strides(sample: torch.Tensor, smallest: Sequence[int]) -> tuple[int, ...]:
    """How much the network shrinks each spatial axis; 0 where that is not a whole factor."""
    return tuple(
        size // small if small and size % small == 0 else 0
        for size, small in zip(sample.shape[2:], smallest, strict=True)
    )


def exact_inputs(example: Example) -> tuple[TensorInput, ...]:
    """The placeholders of the graph, for the example's own sizes only."""
    roles = {example.sample: "sample", example.timestep: "timestep"}
    return tuple(
        TensorInput(name, tensor.dtype, tuple(tensor.shape), roles.get(name, ""))
        for name, tensor in example.tensors.items()
    )


def plan_inputs(example: Example, strides: Sequence[int], fixed: Collection[str] = ()) -> tuple[TensorInput, ...]:
    """The placeholders of the graph, leaving open every size that the example's proportions explain.

    Args:
        example: the call to capture.
        strides: of the network, per spatial axis.
        fixed: symbols to keep at the example's sizes.
    """
    sample, tokens = example.tensors[example.sample], _token_lengths(example)
    planned = []
    for spec in exact_inputs(example):
        shape = example.tensors[spec.name].shape
        dims: list[int | Size] = list(shape)
        if dims and shape[0] == example.batch:
            dims[0] = Size(BATCH)
        if len(shape) == sample.dim() and sample.dim() in _AXES:
            dims[2:] = map(_in_proportion, _AXES[sample.dim()], shape[2:], sample.shape[2:], strides)
        elif spec.name in tokens:
            dims[1] = Size(f"{tokens[spec.name]}{TOKENS}")
        kept = (
            size if isinstance(dim, Size) and dim.symbol in fixed else dim
            for dim, size in zip(dims, shape, strict=True)
        )
        planned.append(replace(spec, dims=tuple(kept)))
    return tuple(planned)


def _in_proportion(axis: str, size: int, whole: int, stride: int) -> int | Size:
    """A size beside the sample's: where that is 8*height, half of it is 4*height."""
    multiple, rest = divmod(stride * size, whole)
    return size if rest or not multiple else Size(axis, multiple)


def symbols_of(inputs: Sequence[TensorInput]) -> set[str]:
    """Names of the sizes that are open."""
    return {dim.symbol for spec in inputs for dim in spec.dims if isinstance(dim, Size)}


def _token_lengths(example: Example) -> dict[str, str]:
    """Input -> the input that sets its number of tokens: sequences themselves, and masks over them."""
    sequences = {
        name: tensor.shape[1]
        for name, tensor in example.tensors.items()
        if tensor.dim() == 3 and name != example.sample and example.tensors[example.sample].dim() != 3
    }
    lengths = {name: name for name in sequences}
    for name, tensor in example.tensors.items():
        if tensor.dim() == 2 and "mask" in name:
            covered = [other for other, length in sequences.items() if length == tensor.shape[1]]
            if covered:
                lengths[name] = covered[0]
    return lengths


def traced_sizes(inputs: Sequence[TensorInput], example: Example) -> dict[str, int]:
    """Symbol -> the number to trace with: a prime of its own, above 10 and the example's number.

    Export decides comparisons, with the network's constants and between symbols, by these numbers. A height of
    8 in a network of 8 channels would pass for the channels, equal height and width for a rule that they are,
    and a size of 1 is a constant to export. Nobody builds networks from these primes.
    """
    sizes: dict[str, int] = {}
    for spec in inputs:
        for dim, size in zip(spec.dims, example.tensors[spec.name].shape, strict=True):
            if isinstance(dim, Size) and dim.symbol not in sizes:
                sizes[dim.symbol] = _next_free_prime(max(10, size // dim.multiple), sizes.values())
    return sizes


def _next_free_prime(above: int, taken: Collection[int]) -> int:
    prime = sympy.nextprime(above)
    while prime in taken:
        prime = sympy.nextprime(prime)
    return int(prime)


def assumed_symbols(program: ExportedProgram, inputs: Sequence[TensorInput]) -> set[str]:
    """Symbols that export did not leave open: made constant, tied to another one, or compared with a number."""
    assumed: set[str] = set()
    names: dict[object, str] = {}
    values = _input_values(program)
    for value, spec in zip(values, inputs, strict=True):
        for symbol, position in symbol_positions(spec).items():
            size = value.shape[position]
            expression = None if isinstance(size, int) else size.node.expr
            if expression is None or not expression.is_Symbol:
                assumed.add(symbol)
            elif names.setdefault(expression, symbol) != symbol:
                assumed |= {symbol, names[expression]}
    return assumed | _guarded_symbols(values, names)


def _input_values(program: ExportedProgram) -> list[FakeTensor]:
    """Fake values of the adapter's inputs, without the parameters that export lifted into inputs too."""
    own = set(program.graph_signature.user_inputs)
    return [any_value(node) for node in program.graph.nodes if node.op == "placeholder" and node.name in own]


def _guarded_symbols(values: Sequence[FakeTensor], names: Mapping[object, str]) -> set[str]:
    shape_env = values[0].fake_mode.shape_env
    guarded: set[str] = set()
    if shape_env is None:
        return guarded
    for guard in shape_env.guards:
        condition = _settle_minima(shape_env.replace(guard.expr))
        guarded |= {names[symbol] for symbol in condition.free_symbols if symbol in names}
    return guarded


def _settle_minima(condition: sympy.Basic) -> sympy.Basic:
    """Take Min(32, 32*width) for 32: sizes are at least 1. Export's stride arithmetic is full of these."""
    return condition.replace(Min, _smaller)


def _smaller(*parts: sympy.Expr) -> sympy.Expr:
    numbers = [part for part in parts if part.is_number]
    if len(numbers) == 1 and all(part is numbers[0] or _at_least(part, numbers[0]) for part in parts):
        return numbers[0]
    return Min(*parts)


def _at_least(expression: sympy.Expr, number: sympy.Expr) -> bool:
    """Whether a polynomial that only grows with its sizes reaches `number` where all of them are 1."""
    if not expression.is_polynomial(*expression.free_symbols):
        return False
    coefficients = sympy.Poly(expression, *expression.free_symbols).coeffs()
    return all(coefficient > 0 for coefficient in coefficients) and sum(coefficients) >= number
