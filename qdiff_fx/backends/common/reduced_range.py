"""7-bit activation codes for layers whose products would not fit 16 bits.

Some processors multiply u8 by s8 codes and add each two neighbouring products in 16 bits, which saturate silently:
255·127·2 does not fit, 127·128·2 does, and so does 255·64·2. Layers with large weight codes therefore read codes from
0 to 127 over the same range of values; torch.ao calls that ``reduce_range``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.base import Backend, activation_of, weight_codes, weight_of
from qdiff_fx.ir.annotations import fact, put, require, value
from qdiff_fx.ir.arguments import function_of, operand
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor, insert_call, insert_get_attr, is_op
from qdiff_fx.ir.facts import QuantizedLayer, StaticQParams, quantized_layers
from qdiff_fx.quant.numerics import choose_qparams, integer_range

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed

BITS = 7
NOTE_SATURATES = "activations in 7 bits: this processor's int8 products saturate at 16 bits"
NOTE_ASKED = "activations in 7 bits: reduce_range"
INT16_MAX = 2**15 - 1
QUANTIZE: dict[object, torch._ops.OpOverload] = {
    qd.dequantize_per_tensor.default: qd.quantize_per_tensor.default,
    qd.dequantize_per_tensor.tensor: qd.quantize_per_tensor.tensor,
}


class Quantizer(NamedTuple):
    """``x ≈ (q − zero_point) · scale``: scale float and zero-point integer, both [S], one for each timestep bin."""

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int


def fit_products(gm: fx.GraphModule, backend: Backend, asked: bool | None = None) -> dict[fx.Node, str]:
    """Reduce, in place, what the backend runs on integers, where its kernels saturate or it is asked for.

    Args:
        gm: a q/dq graph.
        backend: what is going to lower it.
        asked: the ``reduce_range`` of its options; ``None`` leaves it to the backend.

    Returns:
        What ``explain()`` says of each layer that was changed.
    """
    if asked is False or (asked is None and not backend.saturates()):
        return {}
    note = NOTE_ASKED if asked else NOTE_SATURATES
    layers = [layer for layer in quantized_layers(gm) if not backend.supports(layer)]
    return dict.fromkeys(reduce_range(gm, layers), note)


def overflows(gm: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether two neighbouring products of a weight layer may exceed 16 bits, whatever order its kernel packs in."""
    activation, weight = activation_of(layer), weight_of(layer)
    if activation is None or weight is None:
        return False
    codes = weight_codes(gm, cast(fx.Node, weight.args[0]))
    largest = max(int(codes.max()), -int(codes.min()))
    return 2 * largest * cast(int, activation.args[4]) > INT16_MAX


def reduce_range(gm: fx.GraphModule, layers: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """Give those of ``layers`` that may overflow 7-bit activation codes, in place.

    They read quantizers of their own: whoever else reads the same tensor keeps its 8 bits.

    Args:
        gm: a q/dq graph.
        layers: weight layers of it, in execution order.

    Returns:
        The layers that were changed.
    """
    reduced: dict[fx.Node, fx.Node] = {}
    changed = [layer for layer in layers if overflows(gm, layer)]
    for layer in changed:
        activation = cast(fx.Node, activation_of(layer))
        if activation not in reduced:
            reduced[activation] = _requantized(
                gm, activation, reduced, of_residual=require(layer, QuantizedLayer).reads_residual
            )
        values, dtype = reduced[activation], value(operand(layer)).dtype
        if dtype != torch.float32:
            values = insert_call(gm.graph, layer, aten.to.dtype, (values, dtype))
        layer.update_arg(0, values)
    return frozenset(changed)


def _requantized(
    gm: fx.GraphModule, activation: fx.Node, reduced: dict[fx.Node, fx.Node], *, of_residual: bool
) -> fx.Node:
    """The values ``activation`` dequantizes, in 7 bits: a dequantize node right behind it."""
    codes = cast(fx.Node, activation.args[0])
    # Codes that no quantizer of this graph makes are dequantized and quantized once more.
    source = cast(fx.Node, codes.args[0] if is_op(codes, *QUANTIZE.values()) else activation)
    if not of_residual:
        return _insert_quantizer(gm, activation.next, source, activation, _over_same_range)
    # The second code of a 16-bit input is of what the first leaves over, which is twice as much now.
    x, coarse = cast(tuple[fx.Node, fx.Node], source.args)
    if coarse not in reduced:
        reduced[coarse] = _requantized(gm, coarse, reduced, of_residual=False)
    residual = insert_call(gm.graph, activation.next, aten.sub.Tensor, (x, reduced[coarse]))
    return _insert_quantizer(gm, residual.next, residual, reduced[coarse], _over_half_a_step)


def _over_same_range(old: Quantizer) -> tuple[Tensor, Tensor]:
    low, high = ((bound - old.zero_point) * old.scale.double() for bound in (old.qmin, old.qmax))
    return choose_qparams(low, high, BITS, symmetric=False, signed=False)


def _over_half_a_step(coarse: Quantizer) -> tuple[Tensor, Tensor]:
    return choose_qparams(-coarse.scale / 2, coarse.scale / 2, BITS, symmetric=False, signed=False)


def _insert_quantizer(
    gm: fx.GraphModule,
    before: fx.Node,
    source: fx.Node,
    like: fx.Node,
    choose: Callable[[Quantizer], tuple[Tensor, Tensor]],
) -> fx.Node:
    """Quantize and dequantize ``source``, its parameters chosen from those of the dequantize node ``like``."""
    qmin, qmax = cast(tuple[int, int], like.args[3:5])
    old = Quantizer(_tensor(gm, like.args[1]), _tensor(gm, like.args[2]), qmin, qmax)
    parameters = [
        _as_argument(gm, before, argument, value) for argument, value in zip(like.args[1:3], choose(old), strict=True)
    ]
    tail = (*parameters, *integer_range(BITS, signed=False), torch.uint8)
    codes = insert_call(gm.graph, before, QUANTIZE[like.target], (source, *tail))
    static = fact(operand(like), StaticQParams)
    if static is not None:
        scale, zero_point = choose(Quantizer(torch.tensor(static.scale), torch.tensor(static.zero_point), qmin, qmax))
        put(codes, StaticQParams(float(scale), int(zero_point)))
    return insert_call(gm.graph, before, function_of(like), (codes, *tail))


def _tensor(gm: fx.GraphModule, argument: object) -> Tensor:
    """A scale or zero-point: a number, a constant, or a row of a table, of which this is all rows."""
    if not isinstance(argument, fx.Node):
        return torch.tensor(argument)
    return get_attr_tensor(gm, _constant(argument))


def _constant(argument: fx.Node) -> fx.Node:
    return cast(fx.Node, argument.args[0]) if is_op(argument, aten.index_select.default) else argument


def _as_argument(gm: fx.GraphModule, before: fx.Node, like: object, value: Tensor) -> float | int | fx.Node:
    """``value`` in the form of the argument ``like``."""
    if not isinstance(like, fx.Node):
        return value.item()
    old = get_attr_tensor(gm, _constant(like))
    name = add_buffer(gm, f"reduced_range.{like.name}", value.to(old.dtype).reshape(old.shape))
    constant = insert_get_attr(gm, before, name)
    if like.op == "get_attr":
        return constant
    return insert_call(gm.graph, before, aten.index_select.default, (constant, *like.args[1:]))
