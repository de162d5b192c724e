"""What the kernels' sums of 32 bits hold.

A kernel adds ``(code - zero_point) * weight`` of one output channel; the first factor is at most 255 in magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_WEIGHTS = (2**31 - 1) // 255  # the sum of the magnitudes of a channel's weights
AT_ONCE = 1 << 18  # weights: as float32 they stay in L2
EXACT = (1 << 24) // 128  # so many of int8 add up to a number that float32 holds, in any order


def signed_sums(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the positive and of the negative weights of each output channel.

    Args:
        codes: int8 (out, in, ...).

    Returns:
        Two int64 (out,), the second of no number above zero.
    """
    rows = codes.flatten(1)
    # Torch is slow at adding up bytes.
    exact = torch.float32 if rows.shape[1] <= EXACT else torch.float64
    sums, magnitudes = [], []
    for block in rows.split(max(1, AT_ONCE // max(1, rows.shape[1]))):
        numbers = block.to(exact)
        sums.append(numbers.sum(1))
        magnitudes.append(numbers.abs_().sum(1))
    total, magnitude = (torch.cat(each).to(torch.int64) for each in (sums, magnitudes))
    return (magnitude + total) // 2, (total - magnitude) // 2


def overflow(codes: Tensor, bits: int) -> str:
    """Why the sums of a weight's output channels may exceed 32 bits; empty when they cannot.

    Exact, of the codes as they are; of few enough of them the number alone tells.

    Args:
        codes: int8 (out, in, ...).
        bits: of the codes.
    """
    inputs = codes[0].numel()
    if inputs << (bits - 1) <= MOST_WEIGHTS:
        return ""
    positive, negative = signed_sums(codes)
    largest = int((positive - negative).max())
    if largest <= MOST_WEIGHTS:
        return ""
    return f"its {inputs} weights per output channel can add up to 255 * {largest}, more than 32 bits hold"
