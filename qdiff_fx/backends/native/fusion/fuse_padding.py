"""Zero padding before a convolution becomes part of where its kernel reads."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import CONV, QUANTIZE
from qdiff_fx.ir.annotations import describe_like, value
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten
PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})


class Padded(NamedTuple):
    """``conv(quantize(pad(x)))``."""

    conv: fx.Node
    quantize: fx.Node
    pad: fx.Node


class FusePadding(Rule[Padded]):
    """``conv(quantize(pad(x)))`` → ``conv(quantize(x), padding=…)``.

    The code of a padding zero is the zero-point, which the kernel puts outside the image itself.
    """

    targets = frozenset({CONV})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Padded | None:
        codes: Any = node.kwargs["codes"]
        quantize, *more = codes
        if more or quantize.target is not QUANTIZE:
            return None
        pad = quantize.kwargs["x"]
        return Padded(node, quantize, pad) if getattr(pad, "target", None) in PADS else None

    def refuse(self, gm: fx.GraphModule, found: Padded) -> str:
        sizes, mode, filling = _arguments(found.pad)
        if mode != "constant" or filling:
            return f"it is padded with {filling if mode == 'constant' else mode}, the kernel pads with zero"
        if value(found.pad).dim() != 4 or len(sizes) > 4:
            return "other dimensions than those of the image are padded"
        if any(not isinstance(size, int) or size < 0 for size in sizes):
            return "the padding is negative or known only when it runs"
        if found.conv.kwargs["enlarge"] != [1, 1]:
            return "the image is padded before it is upsampled, the kernel pads it afterwards"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: Padded) -> str:
        conv, quantize, pad = found
        sizes, _, _ = _arguments(pad)
        left, right, top, bottom = [*sizes, 0, 0][:4]
        old: Any = conv.kwargs["padding"]
        padding = [a + b for a, b in zip(old, (top, bottom, left, right), strict=True)]
        source: Any = pad.args[0]
        with gm.graph.inserting_before(quantize):
            codes = gm.graph.call_function(QUANTIZE, kwargs={**quantize.kwargs, "x": source})
        describe_like(codes, quantize, value=value(source), facts=True)
        conv.kwargs = {**conv.kwargs, "codes": [codes], "padding": padding}
        if not quantize.users:
            gm.graph.erase_node(quantize)
        return f"padding {padding}"


def _arguments(pad: fx.Node) -> tuple[list[Any], str, float]:
    """Sizes, mode and the value of what is put there."""
    sizes, *rest = cast("tuple[Any, ...]", pad.args[1:])
    given: dict[str, Any] = pad.kwargs
    if pad.target is aten.constant_pad_nd.default:
        return sizes, "constant", given.get("value", rest[0] if rest else 0.0)
    mode = given.get("mode", rest[0] if rest else "constant")
    filling = given.get("value", rest[1] if len(rest) > 1 else 0.0)
    return sizes, mode, filling or 0.0
