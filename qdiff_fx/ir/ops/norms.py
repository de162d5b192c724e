"""Norms, softmax, pooling, upsampling and dropout."""

from __future__ import annotations

from qdiff_fx.ir.ops.operator import Channels, Kind, NoOp, Trait, Writes, rows

_DIM_1 = Channels.KEPT_IN_DIM_1

NORMS = (
    *rows("group_norm", Kind.NORM, channels=_DIM_1),
    *rows("batch_norm", Kind.NORM, channels=_DIM_1, writes=Writes("training", "running_mean")),
    *rows("instance_norm", Kind.NORM, channels=_DIM_1, writes=Writes("use_input_stats", "running_mean")),
    *rows("layer_norm rms_norm", Kind.NORM, channels=Channels.KEPT),
    *rows("_native_batch_norm_legit_no_training", Kind.NORM, canonical="aten.batch_norm.default"),
    *rows("norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype", Kind.NORM),
    *rows("linalg_vector_norm cosine_similarity _weight_norm norm_except_dim", Kind.NORM),
)

SOFTMAXES = (
    *rows("softmax.int", Kind.SOFTMAX),
    *rows("_softmax special_softmax", Kind.SOFTMAX, canonical="aten.softmax.int"),
    *rows("log_softmax.int _log_softmax _safe_softmax", Kind.SOFTMAX),
)

POOLINGS = (
    *rows(
        "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool2d",
        Kind.POOLING,
        channels=_DIM_1,
    ),
    *rows(
        "adaptive_avg_pool1d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "max_pool2d_with_indices",
        Kind.POOLING,
    ),
)

UPSAMPLINGS = (
    *rows("upsample_nearest2d.vec", Kind.UPSAMPLING, Trait.MOVES_CODES, channels=_DIM_1),
    *rows(
        "upsample_nearest1d.vec upsample_nearest3d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec",
        Kind.UPSAMPLING,
        channels=_DIM_1,
    ),
    *rows(
        "upsample_linear1d.vec upsample_trilinear3d.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec "
        "_upsample_nearest_exact3d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec",
        Kind.UPSAMPLING,
    ),
)

DROPOUTS = (
    *rows("dropout", Kind.DROPOUT, Trait.BETWEEN_SCORES, channels=Channels.KEPT, noop=NoOp.SWITCHED_OFF),
    *rows("feature_dropout alpha_dropout", Kind.DROPOUT, noop=NoOp.SWITCHED_OFF),
    *rows("feature_alpha_dropout", Kind.DROPOUT),
)

ROWS = (*NORMS, *SOFTMAXES, *POOLINGS, *UPSAMPLINGS, *DROPOUTS)
