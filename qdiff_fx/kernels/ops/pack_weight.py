"""Weights, once and for all, as the integer layers read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.accumulator import overflow
from qdiff_fx.kernels.dispatch import status
from qdiff_fx.kernels.registration import register

SCHEMA = "(Tensor codes, int bits) -> (Tensor, Tensor)"
_LANES, _VECTOR_BYTES = 16, 64  # of packed weights: kLanes and kVectorBytes of kernels.h


def reference(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 codes (out, in, ...) of so many bits as the kernels read them, and their sums per output channel.

    Compiled kernels pack codes of up to 4 bits two to a byte (uint8). Without them the codes come back as they are,
    the sums unused. Sums that might exceed 32 bits are an error here, so that the layers need not look for them.
    """
    check(codes, bits)
    limit = 1 << (bits - 1)
    if int(codes.min()) < -limit or int(codes.max()) >= limit:
        raise checks.error("pack_weight", f"codes of {bits} bits are {-limit} to {limit - 1}, these are not")
    if reason := overflow(codes, bits):
        raise checks.error("pack_weight", reason)
    # A copy: whoever packed may free the codes.
    return codes.flatten().clone(), codes.flatten(1).sum(1, dtype=torch.int32)


def check(codes: Tensor, bits: int) -> None:
    """Raise KernelError unless `pack_weight` takes such a tensor."""
    op = "pack_weight"
    checks.plain(op, [codes])
    if not 2 <= bits <= 8:
        raise checks.error(op, f"weights have 2 to 8 bits, not {bits}")
    if codes.dtype != torch.int8 or not 2 <= codes.dim() <= 4 or codes.numel() == 0:
        raise checks.error(op, f"expected int8 codes (out, in, ...), not {codes.dtype} {tuple(codes.shape)}")


def fake(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Of the sizes that the kernels of this processor make."""
    check(codes, bits)
    out, inputs = codes.shape[:2]
    if not (codes.device.type == "cpu" and status().available):
        return codes.new_empty(codes.numel()), codes.new_empty(out, dtype=torch.int32)
    vectors = -(-out // _LANES)
    quads = math.prod(codes.shape[2:]) * -(-inputs // 4)
    sums = codes.new_empty(vectors * _LANES, dtype=torch.int32)
    if bits > 4:
        return codes.new_empty(quads * vectors * _VECTOR_BYTES), sums
    return codes.new_empty(quads * -(-vectors // 2) * _VECTOR_BYTES, dtype=torch.uint8), sums


def check_packed(op: str, packed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int]) -> None:
    """A weight (out, in, ...) from `reference`, its scales and its sums, as a layer is given them."""
    weight, scale, sums = packed
    if weight.dtype != torch.int8 or weight.numel() != math.prod(shape) or not weight.is_contiguous():
        wanted = " x ".join(str(size) for size in shape)
        raise checks.error(op, f"the packed weight has {weight.numel()} bytes, not those of {wanted}")
    checks.scales_and_sums(op, scale, sums, shape[0])


register("pack_weight", SCHEMA, reference, fake)
