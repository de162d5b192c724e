"""Which sizes of the inputs a capture leaves open, and what it then assumed about them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram

from qdiff_fx.capture.adapter import symbol_positions
from qdiff_fx.capture.example import Example
from qdiff_fx.capture.guards import Watch, divisors, open_questions
from qdiff_fx.ir.annotations import any_value
from qdiff_fx.signature.inputs import BATCH, Size, TensorInput

TOKENS, ROWS = ".tokens", ".rows"
NOTHING_FIXED: Mapping[str, str] = MappingProxyType({})
OUT_OF_PROPORTION = "it is in no whole proportion to the sample"
_POWERS = (1, 2, 4, 8)
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
    """How much the network shrinks each spatial axis, as far as the sizes it passes through tell."""
    return tuple(map(_stride, sample.shape[2:], smallest))


def _stride(size: int, small: int) -> int:
    """Where crops or odd sizes are between them, the largest power of two that may be it."""
    if small and size % small == 0:
        return size // small
    return max(two for two in _POWERS if size % two == 0 and (two == 1 or two * small <= size))


def wider(strides: Sequence[int], sample: torch.Tensor, divisors: Collection[int]) -> tuple[int, ...]:
    """Larger factors to try where the network asks whether sizes divide: patches, windows, padding to a multiple.

    Args:
        strides: what did not do.
        sample: of the example; its sizes have to be multiples.
        divisors: numbers the network was seen to divide sizes by.
    """
    asked = math.lcm(*divisors) if divisors else 1
    found = []
    for stride, size in zip(strides, sample.shape[2:], strict=True):
        candidates = [math.lcm(stride, asked), *(stride * two for two in reversed(_POWERS))]
        found.append(next((each for each in candidates if each > stride and size % each == 0), stride))
    return tuple(found)


def exact_inputs(example: Example) -> tuple[TensorInput, ...]:
    """The placeholders of the graph, for the example's own sizes only."""
    roles = {example.sample: "sample", example.timestep: "timestep"}
    return tuple(
        TensorInput(name, tensor.dtype, tuple(tensor.shape), roles.get(name, ""))
        for name, tensor in example.tensors.items()
    )


def plan_inputs(
    example: Example,
    strides: Sequence[int],
    fixed: Mapping[str, str] = NOTHING_FIXED,
    rows: Mapping[str, str | None] = NOTHING_FIXED,
) -> tuple[TensorInput, ...]:
    """The placeholders of the graph, leaving open every size that the example's proportions explain.

    Args:
        example: the call to capture.
        strides: of the network, per spatial axis.
        fixed: symbols to keep at the example's sizes, and why.
        rows: inputs whose first size is not the batch though it equals it in the example: None where it is open on its
            own, or why it has to stay.
    """
    sample, tokens = example.tensors[example.sample], _token_lengths(example)
    planned = []
    for spec in exact_inputs(example):
        shape = example.tensors[spec.name].shape
        dims: list[int | Size] = list(shape)
        reasons: dict[int, str] = {}
        if spec.name in rows:
            dims[0], reasons[0] = Size(f"{spec.name}{ROWS}"), rows[spec.name] or ""
        elif dims and _is_of_samples(shape[0], example.batch):
            dims[0] = Size(BATCH, shape[0] // example.batch)
        if len(shape) == sample.dim() and sample.dim() in _AXES:
            dims[2:] = map(_in_proportion, _AXES[sample.dim()], shape[2:], sample.shape[2:], strides)
            reasons |= {at: OUT_OF_PROPORTION for at, dim in enumerate(dims) if at > 1 and isinstance(dim, int)}
        elif spec.name in tokens:
            dims[1] = Size(f"{tokens[spec.name]}{TOKENS}")
        for at, dim in enumerate(dims):
            if isinstance(dim, Size) and (reasons.get(at) or dim.symbol in fixed):
                dims[at], reasons[at] = shape[at], reasons.get(at) or fixed[dim.symbol]
        planned.append(replace(spec, dims=tuple(dims), fixed=tuple((at, why) for at, why in reasons.items() if why)))
    return tuple(planned)


def _is_of_samples(rows: int, batch: int) -> bool:
    """One row for each sample; or several, as of frames, which an example of one sample cannot tell from a table."""
    return rows == batch or (batch > 1 and rows % batch == 0)


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
                sizes[dim.symbol] = next_free_prime(max(10, size // dim.multiple), sizes.values())
    return sizes


def next_free_prime(above: int, taken: Collection[int]) -> int:
    """The smallest prime above a number that is not among those taken."""
    prime = sympy.nextprime(above)
    while prime in taken:
        prime = sympy.nextprime(prime)
    return int(prime)


@dataclass(frozen=True)
class Assumption:
    """Sizes that export did not leave open: made constant, tied to another one, or compared with a number.

    divisors: what the network divides them by. failed: export raised, and it is not known which of the sizes it was.
    """

    symbols: frozenset[str]
    why: str
    divisors: frozenset[int] = frozenset()
    failed: bool = False


def assumptions(program: ExportedProgram, inputs: Sequence[TensorInput], watch: Watch) -> list[Assumption]:
    """What the graph holds for only."""
    found: list[Assumption] = []
    names: dict[object, str] = {}
    values = _input_values(program)
    for value, spec in zip(values, inputs, strict=True):
        for symbol, position in symbol_positions(spec).items():
            size = value.shape[position]
            expression = None if isinstance(size, int) else size.node.expr
            if expression is None or not expression.is_Symbol:
                why = f"{watch.place_of(symbol)} takes it for a plain number"
                found.append(Assumption(frozenset({symbol}), why))
            elif names.setdefault(expression, symbol) != symbol:
                both = frozenset({symbol, names[expression]})
                found.append(
                    Assumption(both, f"{watch.place_of(symbol)} works only where {' and '.join(both)} are equal")
                )
    shape_env = values[0].fake_mode.shape_env
    ours = {str(symbol): name for symbol, name in names.items()}
    for guard, condition in open_questions(shape_env, ours) if shape_env else []:
        symbols = frozenset(ours[str(symbol)] for symbol in condition.free_symbols if str(symbol) in ours)
        why = f"{watch.places.get(guard, '')} goes by whether {watch.in_words(condition)}".strip()
        found.append(Assumption(symbols, why, frozenset(divisors(condition))))
    return found


def _input_values(program: ExportedProgram) -> list[FakeTensor]:
    """Fake values of the adapter's inputs, without the parameters that export lifted into inputs too."""
    own = set(program.graph_signature.user_inputs)
    return [any_value(node) for node in program.graph.nodes if node.op == "placeholder" and node.name in own]
