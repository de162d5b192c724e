"""A weight of half precision in float32, for as long as one layer reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.registration import register_composite

SCHEMA = "(Tensor weight) -> Tensor"


def reference(weight: Tensor) -> Tensor:
    """The same numbers in float32, exactly; a weight is no longer one to be learned by what reads them.

    What ``weight.to(torch.float32)`` is, in memory that goes from layer to layer: where the system gives it anew, as it
    does from 32 MB on, its pages cost five times what the numbers do.

    Args:
        weight: float16 or bfloat16, of any shape.

    Raises:
        KernelError: it is no floating tensor.
    """
    if weight is None:  # the schema lets it through
        raise checks.error("widen", "a tensor is missing")
    checks.plain("widen", [weight])
    checks.floating("widen", "the weight", weight)
    wide: Tensor = torch.ops.qdiff.act_quantize(weight.detach(), Activation.NONE, torch.float32, 1.0, 0, 0, 0)
    return wide


widen = register_composite("widen", SCHEMA, reference)
