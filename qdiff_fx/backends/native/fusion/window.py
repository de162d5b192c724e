"""Zero padding and nearest-neighbour upsampling before a convolution become part of where it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.layers import CONV, QUANTIZE, named
from qdiff_fx.ir.edit import is_op

aten = torch.ops.aten


def absorb_windows(gm: fx.GraphModule) -> None:
    """In place. The codes of a padding zero are the zero-point, which the kernel puts outside the image itself."""
    for conv in [n for n in gm.graph.nodes if is_op(n, CONV)]:
        if len(named(conv)["codes"]) == 1:
            _absorb_padding(conv)
            _absorb_upsampling(conv)


def _absorb_padding(conv: fx.Node) -> None:
    (quantize,) = named(conv)["codes"]
    pad = named(quantize).get("x") if is_op(quantize, QUANTIZE) else None
    if not is_op(pad, aten.pad.default, aten.constant_pad_nd.default) or not _is_zero_padding(pad):
        return
    left, right, top, bottom = [*pad.args[1], 0, 0][:4]
    old = named(conv)["padding"]
    padding = [a + b for a, b in zip(old, (top, bottom, left, right), strict=True)]
    with conv.graph.inserting_before(quantize):
        codes = conv.graph.call_function(QUANTIZE, kwargs={**quantize.kwargs, "x": pad.args[0]})
    codes.meta = {**quantize.meta, "val": pad.args[0].meta["val"]}
    conv.kwargs = {**conv.kwargs, "codes": [codes], "padding": padding}
    if not quantize.users:
        conv.graph.erase_node(quantize)


def _is_zero_padding(pad: Any) -> bool:
    """Of the last two dims, with nothing cut off; what another mode repeats is not zero."""
    sizes, *rest = pad.args[1:]
    mode, value = "constant", 0.0
    if is_op(pad, aten.pad.default):
        mode = named(pad).get("mode", rest[0] if rest else "constant")
        value = named(pad).get("value", rest[1] if len(rest) > 1 else 0.0)
    else:
        value = named(pad).get("value", rest[0] if rest else 0.0)
    whole = len(sizes) <= 4 and all(isinstance(size, int) and size >= 0 for size in sizes)
    return mode == "constant" and not value and whole and pad.args[0].meta["val"].dim() == 4


def _absorb_upsampling(conv: fx.Node) -> None:
    (upsample,) = named(conv)["codes"]
    if not is_op(upsample, aten.upsample_nearest2d.vec):
        return
    codes, size, factors = upsample.args[:3]
    if size is not None or any(factor != int(factor) for factor in factors):
        return
    conv.kwargs = {**conv.kwargs, "codes": [codes], "enlarge": [int(factor) for factor in factors]}
    if not upsample.users:
        conv.graph.erase_node(upsample)
