"""Layers with weights, matrix products and attention."""

from __future__ import annotations

from dataclasses import replace

from qdiff_fx.ir.ops.operator import Channels, Kind, Layer, Operator, rows

_CONTRACTED = Channels.CONTRACTED

CONVS = tuple(
    row
    for dims in (1, 2, 3)
    for row in (
        Operator(f"aten.conv{dims}d.default", Kind.LAYER, _CONTRACTED, layer=Layer("conv", dims)),
        # `padding` as a word, "same" or "valid".
        Operator(f"aten.conv{dims}d.padding", Kind.LAYER, _CONTRACTED, canonical=f"aten.conv{dims}d.default"),
    )
)

TRANSPOSED_CONVS = tuple(
    Operator(f"aten.{name}", Kind.LAYER, _CONTRACTED, layer=Layer("conv_transpose", dims))
    for dims, name in ((1, "conv_transpose1d.default"), (2, "conv_transpose2d.input"), (3, "conv_transpose3d.input"))
)

LINEAR = (
    Operator("aten.linear.default", Kind.LAYER, _CONTRACTED, layer=Layer("linear")),
    # One of the convolutions above, as its arguments say.
    Operator("aten.convolution.default", Kind.LAYER, _CONTRACTED),
)

PRODUCTS = (
    *rows("matmul", Kind.PRODUCT, channels=_CONTRACTED),
    *rows("bmm mm baddbmm einsum", Kind.PRODUCT, channels=_CONTRACTED, canonical="aten.matmul.default"),
    *rows("addmm", Kind.PRODUCT, channels=_CONTRACTED, canonical="aten.linear.default"),
    *rows("mv dot vdot outer inner addmv addbmm tensordot bilinear", Kind.PRODUCT, channels=_CONTRACTED),
)

ATTENTION = tuple(
    replace(row, layer=Layer("attention")) for row in rows("scaled_dot_product_attention", Kind.ATTENTION)
)

ROWS = (*CONVS, *TRANSPOSED_CONVS, *LINEAR, *PRODUCTS, *ATTENTION)
