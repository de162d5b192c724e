"""A norm writes codes itself, the activation function before them included."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx

from qdiff_fx.backends.native.fusion.kernels import NO_QUANTIZER, NORMS, QUANTIZE, layer_behind, read_in_floats
from qdiff_fx.ir.annotations import describe_like
from qdiff_fx.ir.arguments import function_of
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.checks import CODES
from qdiff_fx.passes.rule import Rule


class Normed(NamedTuple):
    """``quantize(norm(x))``."""

    quantize: fx.Node
    norm: fx.Node


class FuseNormIntoQuantizer(Rule[Normed]):
    """``quantize(norm(x))`` → ``norm(x, out_dtype=uint8, scale=…)``."""

    targets = frozenset({QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Normed | None:
        norm = node.kwargs["x"]
        if not isinstance(norm, fx.Node) or norm.target not in NORMS or norm.kwargs["out_dtype"] in CODES:
            return None
        return Normed(node, norm)

    def subject(self, node: fx.Node, found: Normed) -> fx.Node:
        return layer_behind(node)

    def refuse(self, gm: fx.GraphModule, found: Normed) -> str:
        return read_in_floats("norm's float output", found.norm) or _why_activation(*found)

    def rewrite(self, gm: fx.GraphModule, found: Normed) -> str:
        quantize, norm = found
        given: dict[str, Any] = quantize.kwargs
        changes = {name: given[name] for name in ("out_dtype", *NO_QUANTIZER)}
        if given["activation"] != Activation.NONE:
            changes["activation"] = given["activation"]
        with gm.graph.inserting_before(quantize):
            fused = gm.graph.call_function(function_of(norm), kwargs={**norm.kwargs, **changes})
        describe_like(fused, norm, facts=True)
        quantize.replace_all_uses_with(fused)
        gm.graph.erase_node(quantize)
        gm.graph.erase_node(norm)
        return "the norm writes codes"


def _why_activation(quantize: fx.Node, norm: fx.Node) -> str:
    given: Any = quantize.kwargs["activation"]
    if given == Activation.NONE:
        return ""
    if given != Activation.SILU or "activation" not in norm.kwargs:
        return f"between norm and quantizer lies {Activation(given).name}, which the norm's kernel does not compute"
    if norm.kwargs["activation"] != Activation.NONE:
        return "between norm and quantizer lie two activation functions, the norm's kernel computes one"
    return ""
