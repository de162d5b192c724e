"""Operators that make every element of the result of one element of each argument: arithmetic, activations, choices."""

from __future__ import annotations

from qdiff_fx.ir.ops.operator import Channels, Kind, NoOp, Trait, rows

_ALL = Channels.KEPT_BY_ALL

ARITHMETIC = (
    *rows(
        "mul.Tensor mul.Scalar div.Tensor div.Scalar",
        Kind.POINTWISE,
        Trait.AFFINE,
        Trait.BETWEEN_SCORES,
        channels=_ALL,
        noop=NoOp.BY_ONE,
    ),
    *rows("add.Tensor sub.Tensor", Kind.POINTWISE, Trait.AFFINE, Trait.BETWEEN_SCORES, channels=_ALL),
    *rows("add.Scalar sub.Scalar neg", Kind.POINTWISE, Trait.AFFINE, channels=_ALL),
    *rows(
        """
        div.Tensor_mode div.Scalar_mode true_divide.Tensor rsub.Scalar
        remainder.Tensor remainder.Scalar remainder.Scalar_Tensor fmod.Tensor fmod.Scalar
        pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar float_power.Tensor_Scalar float_power.Tensor_Tensor
        addcmul addcdiv lerp.Scalar lerp.Tensor
        reciprocal sqrt rsqrt square abs sign sgn copysign.Tensor copysign.Scalar hypot
        exp exp2 expm1 log log2 log10 log1p logaddexp logaddexp2 xlogy.Tensor xlogy.Scalar_Self xlogy.Scalar_Other
        sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh sinc deg2rad rad2deg
        erf erfc erfinv logit lgamma digamma i0
        ceil floor round round.decimals trunc frac nan_to_num
        clamp.Tensor clamp_min clamp_min.Tensor clamp_max clamp_max.Tensor clip clip.Tensor
        maximum minimum max.other min.other fmax fmin heaviside ldexp.Tensor
        """,
        Kind.POINTWISE,
        channels=_ALL,
    ),
    *rows("rsub.Tensor floor_divide floor_divide.Scalar", Kind.POINTWISE),
)

ACTIVATIONS = (
    *rows("tanh clamp", Kind.POINTWISE, Trait.BETWEEN_SCORES, channels=_ALL),
    *rows(
        "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardtanh hardshrink softshrink "
        "softplus threshold",
        Kind.POINTWISE,
        channels=_ALL,
    ),
    *rows("hardswish log_sigmoid prelu glu", Kind.POINTWISE),
)

LOGIC = (
    *rows(
        """
        eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar
        ge.Tensor ge.Scalar isnan isinf isfinite isneginf isposinf signbit
        logical_and logical_or logical_xor logical_not
        bitwise_and.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor
        bitwise_or.Tensor bitwise_or.Scalar bitwise_or.Scalar_Tensor
        bitwise_xor.Tensor bitwise_xor.Scalar bitwise_xor.Scalar_Tensor bitwise_not
        bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_left_shift.Scalar_Tensor
        bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar bitwise_right_shift.Scalar_Tensor
        __lshift__.Scalar __lshift__.Tensor __rshift__.Scalar __rshift__.Tensor __xor__.Scalar __xor__.Tensor
        """,
        Kind.POINTWISE,
        channels=_ALL,
    ),
    *rows("__and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor isclose", Kind.POINTWISE),
    *rows("isin.Tensor_Tensor isin.Tensor_Scalar isin.Scalar_Tensor", Kind.POINTWISE),
)

CHOICES = (
    *rows("where.self masked_fill.Scalar", Kind.POINTWISE, Trait.BETWEEN_SCORES, channels=_ALL),
    *rows("where.ScalarOther masked_fill.Tensor", Kind.POINTWISE, Trait.BETWEEN_SCORES),
    *rows("where.ScalarSelf where.Scalar", Kind.POINTWISE),
)

ROWS = (*ARITHMETIC, *ACTIVATIONS, *LOGIC, *CHOICES)
