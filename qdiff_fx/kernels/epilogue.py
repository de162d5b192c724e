"""What operators do with a sum or a normed value before they write it: residual, activation, quantizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.activations import Activation

# The arguments that say how a result is written, as schemas have them.
QUANTIZER = "ScalarType out_dtype, float scale, int zero_point, int low, int high"
OUTPUT = "ScalarType out_dtype, float out_scale, int out_zero_point, int out_low, int out_high"


def finish(
    x: Tensor,
    residual: Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    """``quantize(act(x + residual))``: floats of `out_dtype`, or codes from `low` to `high`."""
    if residual is not None:
        x = x + residual
    if activation == Activation.SILU:
        x = F.silu(x)
    elif activation in (Activation.GELU, Activation.GELU_TANH):
        x = F.gelu(x, approximate="tanh" if activation == Activation.GELU_TANH else "none")
    elif activation == Activation.RELU:
        x = F.relu(x)
    if out_dtype not in checks.CODES:
        return x.to(out_dtype)
    # As torch.ao defines it: a product with the inverse, ties to even.
    return torch.round(x.float() * (1.0 / scale)).add(zero_point).clamp(low, high).nan_to_num(low).to(out_dtype)
