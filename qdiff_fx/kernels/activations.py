"""The activation functions that kernels apply before they write."""

from __future__ import annotations

from enum import IntEnum


class Activation(IntEnum):
    """What a kernel applies before it writes; the numbers are those of `kernels.h`."""

    NONE = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3
    GEGLU = 4  # (..., 2 C) -> (..., C): the first half times the gelu of the second
    RELU = 5


ELEMENTWISE = (Activation.NONE, Activation.SILU, Activation.GELU, Activation.GELU_TANH, Activation.RELU)
OF_NORMS = (Activation.NONE, Activation.SILU)
