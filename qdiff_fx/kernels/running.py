"""Which kernel a call of one of our operators really runs here: compiled for which instructions, or plain torch."""

from __future__ import annotations

import torch

from qdiff_fx.kernels.dispatch import status

PLAIN = "plain torch"
# What every compiled attention takes (attention.h, `Kernel`); beyond, the operator falls back to plain torch.
MOST_PROBABILITY_BITS, MOST_HEAD_DIM, MOST_KEYS = 8, 512, 65536


def kernel_name(target: object) -> str:
    """The operator and what its calls run on, as ``explain()`` says it: "qdiff::int_conv (avx2)"."""
    return _name(target, compiled=True)


def attention_kernel_name(prob_bits: int, head_dim: int | None = None, keys: int | None = None) -> str:
    """The same of attention, which the compiled kernels take in some sizes only.

    Args:
        prob_bits: bits of the probabilities.
        head_dim, keys: sizes, as far as they are known.
    """
    fits = prob_bits <= MOST_PROBABILITY_BITS and (head_dim or 0) <= MOST_HEAD_DIM and (keys or 0) <= MOST_KEYS
    return _name(torch.ops.qdiff.int_attention.default, compiled=fits)


def _name(target: object, *, compiled: bool) -> str:
    state = status()
    operator = str(target).replace(".", "::", 1).split(".")[0]
    return f"{operator} ({state.kernel if state.available and compiled else PLAIN})"
