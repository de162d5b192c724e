"""Dense storage of low-bit codes: two 4-bit codes to a byte, any width from 2 to 8 bits.

The layout is one little-endian bit stream: code i, in two's complement, occupies bits [i*b, (i+1)*b), and
bit k of the stream is bit k % 8 of byte k // 8. So at 4 bits the first of two codes is the low nibble.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qdiff_fx.errors import ArtifactError, ConfigError, ConversionError

CODES_PER_GROUP = 8  # eight b-bit codes fill exactly b bytes, and fit in one 64-bit word


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Signed codes of any shape -> dense bytes: int8 [...] -> uint8 [ceil(numel * bits / 8)].

    Raises:
        ConfigError: bits is not in 2..8.
        ConversionError: the codes are not int8, or one does not fit in `bits` bits.
    """
    _check_bits(bits)
    _check_codes(codes, bits)
    flat = codes.contiguous().flatten()
    if bits == 8:
        return flat.view(torch.uint8).clone()
    if bits == 4:
        return _pack_nibbles(flat)
    return _pack_stream(flat, bits)


def unpack_codes(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_codes`: uint8 [ceil(numel * bits / 8)] -> int8 of `shape`.

    Raises:
        ConfigError: bits is not in 2..8.
        ArtifactError: the bytes are not uint8 [n] of the length that shape needs.
    """
    check_packed(packed, bits, shape)
    count = math.prod(shape)
    if bits == 8:
        return packed.view(torch.int8).clone().reshape(tuple(shape))
    flat = _unpack_nibbles(packed) if bits == 4 else _unpack_stream(packed, bits, count)
    return flat[:count].reshape(tuple(shape))


def check_packed(packed: Tensor, bits: int, shape: Sequence[int]) -> None:
    """Raise what `unpack_codes` raises, without unpacking."""
    _check_bits(bits)
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (packed_size(count, bits),):
        raise ArtifactError(
            f"{count} codes of {bits} bits need uint8 [{packed_size(count, bits)}], "
            f"got {packed.dtype} {list(packed.shape)}",
            where="packed codes",
            fix="The file is damaged or its shape entry is wrong: save it again",
        )


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ConfigError(f"unsupported bits {bits!r}", where="packing", fix="Use 2 to 8")


def _check_codes(codes: Tensor, bits: int) -> None:
    if codes.dtype != torch.int8:
        raise ConversionError(f"codes must be int8, got {codes.dtype}", where="packing")
    if bits == 8 or codes.numel() == 0:
        return
    low, high = (int(v) for v in codes.aminmax())
    limit = 1 << (bits - 1)
    if low < -limit or high >= limit:
        raise ConversionError(
            f"codes in [{low}, {high}] do not fit in {bits} bits ([{-limit}, {limit - 1}])", where="packing"
        )


def _pack_nibbles(flat: Tensor) -> Tensor:
    """int8 [n] -> uint8 [ceil(n / 2)], low nibble first."""
    even = flat if flat.numel() % 2 == 0 else torch.cat([flat, flat.new_zeros(1)])
    pairs = even.view(torch.uint8)
    return (pairs[1::2] << 4).bitwise_or_(pairs[0::2] & 15)


def _unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 [m] -> int8 [2m]; the shifts of int8 are arithmetic, so they extend the sign."""
    pairs = torch.empty(packed.numel(), 2, dtype=torch.int8, device=packed.device)
    pairs[:, 0] = (packed << 4).view(torch.int8) >> 4
    pairs[:, 1] = packed.view(torch.int8) >> 4
    return pairs.flatten()


def _pack_stream(flat: Tensor, bits: int) -> Tensor:
    """int8 [n] -> uint8 [ceil(n * bits / 8)], through one 64-bit word per eight codes."""
    groups = -(-flat.numel() // CODES_PER_GROUP)
    padded = flat.new_zeros(groups * CODES_PER_GROUP)
    padded[: flat.numel()] = flat
    codes = padded.view(groups, CODES_PER_GROUP)
    words = torch.zeros(groups, dtype=torch.int64, device=flat.device)
    for index in range(CODES_PER_GROUP):
        low_bits = codes[:, index].to(torch.int64) & ((1 << bits) - 1)
        words |= low_bits << (index * bits)
    stream = torch.stack([((words >> (8 * byte)) & 255).to(torch.uint8) for byte in range(bits)], dim=1)
    return stream.flatten()[: packed_size(flat.numel(), bits)].clone()


def _unpack_stream(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 [m] -> int8 [at least count]."""
    groups = -(-count // CODES_PER_GROUP)
    padded = packed.new_zeros(groups * bits)
    padded[: packed.numel()] = packed
    words = torch.zeros(groups, dtype=torch.int64, device=packed.device)
    for byte, column in enumerate(padded.view(groups, bits).unbind(dim=1)):
        words |= column.to(torch.int64) << (8 * byte)
    codes = torch.empty(groups, CODES_PER_GROUP, dtype=torch.int8, device=packed.device)
    for index in range(CODES_PER_GROUP):
        # Shifted to the top of a byte and back: the arithmetic right shift extends the sign.
        top = (((words >> (index * bits)) << (8 - bits)) & 255).to(torch.uint8).view(torch.int8)
        codes[:, index] = top >> (8 - bits)
    return codes.flatten()
