"""Problems that once were faults, and their neighbours; tests run them all."""

from __future__ import annotations

WRAPS = 6148914691236517206  # (2^64 + 2) / 3: three times it is 2 modulo 2^64

TABLE = (
    # Sizes that wrap around.
    f"int_conv 1 kernel=[3,3] dilation=[{WRAPS},1]",
    f"int_conv 17 dilation[0]={WRAPS}",
    f"int_conv 17 dilation[1]={2**63 - 1}",
    f"int_conv 17 stride[0]={2**63 - 1}",
    f"int_conv 17 padding[0]={2**62} padding[1]={2**62}",
    f"int_conv 17 padding[0]={-(2**62)}",
    f"int_conv 17 enlarge[0]={2**62}",
    f"int_conv 17 enlarge[0]={2**40} enlarge[1]={2**40}",
    f"int_conv 17 enlarge[0]={2**20} stride[0]={2**20}",
    f"int_conv 17 kernel=[{2**32},{2**32}]",
    "int_conv 17 kernel=[1,1025]",
    *(
        f"int_depthwise_conv 17 {name}[0]={number}"
        for name in ("stride", "dilation", "padding")
        for number in (WRAPS, 2**62)
    ),
    *(f"int_depthwise_conv 17 {name}=sparse" for name in ("codes", "weight", "weight_scale", "bias", "residual")),
    *(f"int_depthwise_conv 17 weight={kind}" for kind in ("number", "huge", "none_in_rows")),
    *(
        f"int_gram 5 total={kind}"
        for kind in ("s64", "f32", "shorter", "repeated", "turned", "overlapping", "flat", "meta")
    ),
    *(
        f"int_gram 5 rows={kind}"
        for kind in ("u8", "wider", "narrower", "more_dims", "strided", "rows_of_none", "none_in_rows")
    ),
    *(
        f"round_with_feedback 5 {name}={kind}"
        for name in ("steps", "pull", "factor")
        for kind in ("f64", "shorter", "wider", "turned", "strided", "repeated", "more_dims", "rows_of_none", "sparse")
    ),
    *(f"round_with_feedback 5 {name}={number}" for name in ("low", "high") for number in (-129, 128, 2**63 - 1)),
    # Negative sizes, and those of nothing.
    *(f"int_conv 17 out_channels={number}" for number in (-1, 0, -16, -(2**63), 2**63 - 1, 2**62, 2**40)),
    *(f"int_linear 5 out_features={number}" for number in (-1, 0, -16, -(2**63), 2**63 - 1, 2**62, 2**40)),
    *(f"group_norm_act 5 groups={number}" for number in (-1, 0, -(2**63), 2**63 - 1, 2**32)),
    *(f"{op} 4 {name}=none_in_rows" for op, name in (("int_linear", "codes"), ("layer_norm_act", "x"))),
    *(f"{op} 4 {name}=endless_nothing" for op, name in (("int_linear", "codes"), ("layer_norm_act", "x"))),
    "act_quantize 4 x=none_in_rows activation=4",
    "int_conv 4 codes[0]=no_channels",
    "int_conv 4 codes[0]=rows_of_none",
    "group_norm_act 4 parts[0]=no_channels",
    "timestep_bin 0 timestep=rows_of_none",
    # Layouts and devices.
    *(
        f"{op} 8 {name}={kind}"
        for op, name in (
            *(
                ("pack_weight", "codes"),
                ("int_conv", "codes[0]"),
                ("int_linear", "codes"),
                ("int_gram", "total"),
                ("int_gram", "rows"),
                ("group_norm_act", "parts[0]"),
            ),
            *(("layer_norm_act", "x"), ("act_quantize", "x"), ("act_quantize_rest", "x"), ("int_attention_vnni", "q")),
            *(("int_attention_vnni.numbers", "k"), ("int_attention", "v"), ("timestep_bin", "timestep")),
        )
        for kind in ("sparse", "meta", "nested", "quantized", "complex", "mkldnn", "huge", "wide", "number")
    ),
    *(f"int_conv 8 {name}=sparse" for name in ("bias", "shift", "residual", "weights[0]", "weight_scales[0]")),
    *(f"int_conv 8 {name}=meta" for name in ("bias", "shift", "residual", "weights[0]", "weight_scales[0]")),
    # Lists of other lengths.
    *(
        f"int_conv 8 {name}={word}"
        for name in ("codes", "scales", "zero_points", "weights", "weight_scales", "weight_sums", "kernel", "padding")
        for word in ("[]", "fewer", "twice")
    ),
    *(
        f"int_linear 9 {name}={word}"
        for name in ("weights", "weight_scales", "weight_sums")
        for word in ("[]", "twice")
    ),
    "group_norm_act 8 parts=[]",
    # Packed weights and what belongs to them.
    *(
        f"int_linear 9 weights[0]={kind}"
        for kind in ("shorter", "longer", "strided", "repeated", "s32", "f32", "number")
    ),
    *(f"int_linear 9 weight_sums[0]={kind}" for kind in ("most", "least", "shorter", "s64", "strided")),
    *(f"int_linear 9 weight_scales[0]={kind}" for kind in ("nan", "inf", "least", "shorter", "f64", "strided")),
    *(f"pack_weight 9 codes={kind} bits={bits}" for kind in ("most", "least") for bits in (2, 4, 7, 8, 9, 1, -(2**63))),
    # Numbers.
    *(
        f"{op} 3 {name}={number}"
        for op, name in (
            *(("int_conv", "scales[0]"), ("int_linear", "scale"), ("act_quantize_rest", "rest_scale")),
            *(("int_attention_vnni.numbers", "q_scale"), ("int_attention_vnni", "softmax_scale")),
            *(("group_norm_act", "epsilon"), ("layer_norm_act", "epsilon")),
        )
        for number in ("NaN", "Infinity", "-Infinity", "0.0", "-1.0", "1e-46", "1e300")
    ),
    "layer_norm_act 1354524655 epsilon=1e-46",  # of rows of one number
    *(f"int_attention_vnni 3 q_scale={kind}" for kind in ("nan", "longer", "meta", "sparse", "s32", "f8", "more_dims")),
    *(f"int_attention_vnni 3 q_zero_point={kind}" for kind in ("f32", "most", "longer", "meta", "nan", "none_in_rows")),
    "int_attention_vnni.numbers 3 softmax_scale=1e30 q_scale=1e30",
    *(f"{op} 6 activation={number}" for op in ("int_conv", "int_linear", "group_norm_act") for number in (-1, 4, 5, 2)),
    *(
        f"{op} 6 out_dtype=torch.{dtype}"
        for op in ("int_conv", "int_linear", "group_norm_act", "layer_norm_act", "act_quantize", "int_attention_vnni")
        for dtype in ("float64", "int32", "bool", "complex64", "float8_e4m3fn", "quint8")
    ),
    *(
        f"act_quantize 6 out_dtype=torch.uint8 scale=0.1 {spoiled}"
        for spoiled in (
            *("zero_point=0 low=200 high=100", "zero_point=256 low=0 high=255", "zero_point=0 low=-1 high=255"),
            *("zero_point=0 low=0 high=256", f"zero_point={2**63 - 1} low={-(2**63)} high={2**63 - 1}"),
        )
    ),
    *(f"timestep_bin 0 {name}={number}" for name in ("bins", "num_train_timesteps") for number in (0, -1, 2**63 - 1)),
)
