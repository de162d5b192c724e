"""The `qdiff` operators, one a file; its name is the operator's. Importing this registers them."""

from qdiff_fx.kernels.ops import (
    act_quantize,
    act_quantize_rest,
    adaround_step,
    group_norm_act,
    histogram,
    int_attention,
    int_conv,
    int_depthwise_conv,
    int_gram,
    int_linear,
    layer_norm_act,
    nearest_codes,
    pack_weight,
    range_errors,
    round_with_feedback,
    timestep_bin,
)

__all__ = [
    "act_quantize",
    "act_quantize_rest",
    "adaround_step",
    "group_norm_act",
    "histogram",
    "int_attention",
    "int_conv",
    "int_depthwise_conv",
    "int_gram",
    "int_linear",
    "layer_norm_act",
    "nearest_codes",
    "pack_weight",
    "range_errors",
    "round_with_feedback",
    "timestep_bin",
]
