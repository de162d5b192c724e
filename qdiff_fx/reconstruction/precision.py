"""Which floating type units learn in: bfloat16 pays only where the processor multiplies it."""

from __future__ import annotations

import functools

import torch


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16.

    Without them torch computes such layers through float32, convolutions at a quarter of float32's speed.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
