"""Operators on codes: quantize and dequantize, our own kernels, and oneDNN's."""

from __future__ import annotations

from qdiff_fx.ir.ops.operator import Kind, Operator, Trait, rows

_CODES, _OWN, _ONEDNN = "quantized_decomposed", "qdiff", "onednn"

# With scales as numbers (default) or as tensors, which are rows of a table over timesteps.
CODES = (
    *rows("quantize_per_tensor.default", Kind.QUANTIZE, namespace=_CODES),
    *rows("quantize_per_tensor.tensor", Kind.QUANTIZE, Trait.READS_FLOAT32, namespace=_CODES),
    *rows("dequantize_per_tensor.default", Kind.DEQUANTIZE, namespace=_CODES),
    *rows("dequantize_per_tensor.tensor", Kind.DEQUANTIZE, Trait.READS_FLOAT32, namespace=_CODES),
    *rows("dequantize_per_channel.default", Kind.DEQUANTIZE, Trait.READS_FLOAT32, namespace=_CODES),
)

OWN = (
    *rows("int_attention", Kind.ATTENTION, Trait.READS_FLOAT32, namespace=_OWN),
    Operator("qdiff.timestep_bin.default", Kind.LOOKUP),
    Operator("qdiff.widen.default", Kind.POINTWISE),
    *rows("int_attention_vnni", Kind.KERNEL, Trait.READS_FLOAT32, namespace=_OWN, stored=False),
    *rows(
        "int_attention_vnni.numbers int_conv int_linear act_quantize act_quantize_rest group_norm_act layer_norm_act",
        Kind.KERNEL,
        namespace=_OWN,
        stored=False,
    ),
)

ONEDNN = (
    *rows(
        "qconv_pointwise.default qconv_pointwise.tensor qlinear_pointwise.default qlinear_pointwise.tensor",
        Kind.KERNEL,
        Trait.READS_FLOAT32,
        Trait.ONEDNN_LAYER,
        namespace=_ONEDNN,
        stored=False,
    ),
    *rows(
        "qconv2d_pointwise.binary qconv2d_pointwise.binary_tensor qlinear_pointwise.binary "
        "qlinear_pointwise.binary_tensor",
        Kind.KERNEL,
        Trait.ONEDNN_SUM,
        namespace=_ONEDNN,
        stored=False,
    ),
)

ROWS = (*CODES, *OWN, *ONEDNN)
