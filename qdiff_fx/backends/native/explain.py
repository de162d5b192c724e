"""What a kernel call of the lowered graph runs, and what it does beside its layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from qdiff_fx.backends.common.running import Running, attention_name
from qdiff_fx.backends.native.fusion.layers import LAYERS, named
from qdiff_fx.backends.native.fusion.numbers import ATTENTION_NUMBERS
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.integer import CODES, Activation
from qdiff_fx.kernels.running import kernel_name

ACTIVATIONS = {
    Activation.SILU: "silu",
    Activation.GELU: "gelu",
    Activation.GELU_TANH: "gelu (tanh)",
    Activation.GEGLU: "geglu",
}


def describe(node: fx.Node) -> Running | None:
    """What a call runs; None where it is no kernel of a layer."""
    if is_op(node, ATTENTION_NUMBERS):
        kernel = attention_name(node, named(node)["prob_bits"])
    elif is_op(node, *LAYERS):
        kernel = kernel_name(node.target)
    else:
        return None
    absorbed = ", ".join(_absorbed(node))
    return Running(kernel, (f"its kernel also does: {absorbed}",) if absorbed else ())


def _absorbed(node: fx.Node) -> Iterator[str]:
    arguments = named(node)
    sources = len(arguments.get("weights", ()))
    if sources > 1:
        yield f"sums {sources} layers"
    if any(factor > 1 for factor in arguments.get("enlarge", ())):
        yield "upsamples its input"
    if arguments.get("shift") is not None:
        yield "adds a number for each channel"
    if arguments.get("residual") is not None:
        yield "adds a tensor"
    activation = Activation(arguments.get("activation", Activation.NONE))
    if activation in ACTIVATIONS:
        yield ACTIVATIONS[activation]
    if arguments["out_dtype"] in CODES:
        yield "quantizes its result"
