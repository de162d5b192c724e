"""One spelling per operation, so that every later pass has one thing to look for."""

from __future__ import annotations

from typing import Any

from torch import fx

from qdiff_fx.passes.canonicalize.conv_spelling import ConvolutionToConv, FullConvArguments, NumericPadding
from qdiff_fx.passes.canonicalize.einsum import EinsumToMatmul
from qdiff_fx.passes.canonicalize.fuse_attention import (
    ExpandAttention,
    FuseAttention,
    SpellAttention,
    WhereToMaskedFill,
)
from qdiff_fx.passes.canonicalize.inplace import MakeFunctional
from qdiff_fx.passes.canonicalize.linear_spelling import (
    AddmmToLinear,
    AddToBias,
    BiasToAdd,
    FoldBias,
    FoldWeight,
    FullLinearArguments,
    MatmulToLinear,
)
from qdiff_fx.passes.canonicalize.noops import DropAssert, DropNoOp, DropSingleCat, DropTrainingDropout
from qdiff_fx.passes.canonicalize.spelling import (
    BaddbmmToMatmul,
    BmmToMatmul,
    MergePermutes,
    NativeBatchNorm,
    SoftmaxToInt,
    TransposeToPermute,
    UnflattenToReshape,
    ViewToReshape,
)
from qdiff_fx.passes.framework import Pass, PassReport, checks
from qdiff_fx.passes.rule import Rule, apply_rules, pending

RULES: tuple[Rule[Any], ...] = (
    # What does nothing goes first: it hides what comes later.
    DropAssert(),
    DropNoOp(),
    DropTrainingDropout(),
    DropSingleCat(),
    MakeFunctional(),
    # One name per layout change, so that a transposed operand is recognised.
    ViewToReshape(),
    UnflattenToReshape(),
    TransposeToPermute(),
    MergePermutes(),
    # One name per matrix product.
    EinsumToMatmul(),
    BmmToMatmul(),
    BaddbmmToMatmul(),
    SoftmaxToInt(),
    # Layers with weights, and the one norm that has two names.
    NativeBatchNorm(),
    ConvolutionToConv(),
    NumericPadding(),
    FullConvArguments(),
    MatmulToLinear(),
    AddmmToLinear(),
    FullLinearArguments(),
    AddToBias(),
    FoldWeight(),
    FoldBias(),
    BiasToAdd(),
    # Attention, last: it is made of all the above.
    WhereToMaskedFill(),
    FuseAttention(),
    SpellAttention(),
    ExpandAttention(),
)


class Canonicalize(Pass):
    """Rewrites every operation to its one spelling; the network computes the same function.

    Afterwards layouts are `reshape` and `permute` only, matrix products are `matmul`, layers with weights are
    `conv*`, `conv_transpose*` and `linear` with every argument written out, and attention is
    `scaled_dot_product_attention(q, k, v, mask, 0.0, False, scale=…)`.
    """

    name = "canonicalize"
    ensures = frozenset({"canonical"})

    def run(self, gm: fx.GraphModule) -> PassReport:
        """Rewrite in place. Raises PassError when the rewrites do not settle."""
        changes, refusals = apply_rules(gm, RULES)
        return PassReport(self.name, tuple(changes), tuple(refusals))


@checks("canonical")
def _not_canonical(gm: fx.GraphModule) -> list[str]:
    return pending(gm, RULES)
