"""What every operator checks on entry, before it computes a size or allocates anything: the twin of checks.h.

Operators get their arguments from graphs, and graphs from files. So nothing here trusts a size, a dtype or a length to
be what a pass would have written. All of it looks at what describes tensors, never at their elements, and so holds for
fake tensors as well; the few checks of numbers that tensors hold are made by `scales_and_sums` and `number_of`.

The limits are far above what any network needs, and low enough that no product of sizes exceeds 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.accumulator import MOST_WEIGHTS

MOST_ELEMENTS = 1 << 34  # of one tensor
MOST_EXTENT = 1 << 24  # rows or columns of a padded, enlarged image; also strides, dilations, paddings
MOST_ENLARGE = 256  # of an image, along one side
MOST_TAPS = 1024  # kernel height * width
MOST_PARTS = 8  # of a group norm: kMaxParts of kernels.h

CODES = (torch.uint8, torch.int8)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (
    *FLOATS,
    torch.float64,
    torch.bool,
    *CODES,
    torch.int16,
    torch.int32,
    torch.int64,
)  # of a tensor that holds one
LEAST_SCALE, MOST_SCALE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def error(op: str, what: str) -> KernelError:
    """What all operators raise."""
    return KernelError(what, where=op)


def plain(op: str, tensors: Iterable[Tensor | None]) -> None:
    """Dense tensors of ordinary elements, all but single numbers on one device, none of absurd size."""
    device = None
    for x in tensors:
        if x is None:
            continue
        if x.is_nested or x.layout != torch.strided or x.dtype.is_complex or x.is_quantized:
            kind = "nested ones" if x.is_nested else f"{x.layout} {x.dtype}"
            raise error(op, f"takes dense tensors of real numbers, not {kind}")
        # Of no rows there may still be any number of columns.
        if x.numel() > MOST_ELEMENTS or any(size > MOST_ELEMENTS for size in x.shape):
            raise error(op, f"a tensor {tuple(x.shape)} of more than {MOST_ELEMENTS} elements")
        if x.dim() == 0:
            continue
        device = device or x.device
        if x.device != device:
            raise error(op, f"its tensors have to be on one device, not on {device} and {x.device}")


def within(op: str, what: str, number: int, low: int, high: int) -> None:
    """A whole number from `low` to `high`."""
    if not low <= number <= high:
        raise error(op, f"{what} must be {low}..{high}, not {number}")


def positive(op: str, what: str, number: float) -> None:
    """A number that is positive and finite in float32 too, and so is its inverse."""
    if not LEAST_SCALE <= number <= MOST_SCALE:
        raise error(op, f"{what} must be a positive finite number of float32, not {number}")


def epsilon(op: str, number: float) -> None:
    """What is added to a variance; one that float32 rounds to nothing would be so in one kernel and not in another."""
    if number != 0 and not LEAST_SCALE <= number <= MOST_SCALE:
        raise error(op, f"epsilon must be 0 or a positive finite number of float32, not {number}")


def activation(op: str, number: int, known: Sequence[int]) -> None:
    """One of the activations this operator has."""
    if number not in known:
        raise error(op, f"there is no activation {number}, only {', '.join(str(int(each)) for each in known)}")


def floating(op: str, what: str, x: Tensor) -> None:
    """A tensor of floats that kernels read."""
    if x.dtype not in FLOATS:
        raise error(op, f"{what} must be float32, float16 or bfloat16, not {x.dtype}")


def codes(op: str, x: Tensor, scale: float, zero_point: int) -> None:
    """uint8 codes with their quantizer."""
    if x.dtype != torch.uint8:
        raise error(op, f"codes must be uint8, not {x.dtype}")
    positive(op, "a scale", scale)
    if not 0 <= zero_point <= 255:
        raise error(op, f"zero point {zero_point} is not in 0..255")


def quantizer(op: str, dtype: torch.dtype, scale: float, zero_point: int, low: int, high: int) -> None:
    """The form of a result: floats, whose quantizer nobody reads, or codes and theirs."""
    if dtype in FLOATS:
        return
    if dtype not in CODES:
        raise error(op, f"out_dtype must be float32, float16, bfloat16, uint8 or int8, not {dtype}")
    positive(op, "the scale", scale)
    least = 0 if dtype == torch.uint8 else -128
    if not least <= low <= high <= least + 255:
        raise error(op, f"codes from {low} to {high} do not fit {dtype}")
    if not low <= zero_point <= high:
        raise error(op, f"zero point {zero_point} is not one of the codes {low} to {high}")


def out_dtype(op: str, dtype: torch.dtype) -> None:
    """The part of `quantizer` that needs no numbers."""
    if dtype not in CODES:
        quantizer(op, dtype, 1.0, 0, 0, 0)


def vector(op: str, what: str, x: Tensor | None, count: int) -> None:
    """Nothing, or so many float32 numbers side by side."""
    if x is None:
        return
    if x.dtype != torch.float32 or x.dim() != 1 or x.shape[0] != count or not x.is_contiguous():
        raise error(op, f"{what} must hold {count} contiguous float32 numbers, not {x.dtype} {tuple(x.shape)}")


def residual(op: str, x: Tensor | None, size: Sequence[int]) -> None:
    """Nothing, or floats of the result's shape, which they are added to."""
    if x is None:
        return
    floating(op, "the residual", x)
    if tuple(x.shape) != tuple(size):
        raise error(op, f"the residual {tuple(x.shape)} is not like the result {tuple(size)}")


def sizes(op: str, shape: Sequence[int]) -> None:
    """The shape of a result."""
    if math.prod(shape) > MOST_ELEMENTS:
        raise error(op, f"a result {tuple(shape)} of more than {MOST_ELEMENTS} elements")


def window(
    op: str,
    images: Sequence[Tensor],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    enlarge: Sequence[int],
) -> tuple[int, int]:
    """The height and width of what a convolution makes of images (N, C_i, H, W) that differ in channels only."""
    if [len(each) for each in (kernel, stride, padding, dilation, enlarge)] != [2, 2, 4, 2, 2]:
        raise error(op, "kernel, stride, dilation and enlarge need two numbers, padding four")
    for what, numbers, most in (
        ("kernel", kernel, MOST_TAPS),
        ("stride", stride, MOST_EXTENT),
        ("dilation", dilation, MOST_EXTENT),
        ("enlarge", enlarge, MOST_ENLARGE),
    ):
        for number in numbers:
            within(op, what, number, 1, most)
    for number in padding:
        within(op, "padding", number, -MOST_EXTENT, MOST_EXTENT)
    if kernel[0] * kernel[1] > MOST_TAPS:
        raise error(op, f"kernels of more than {MOST_TAPS} taps are not supported")
    batch, _, *image = images[0].shape
    padded, found = [], []
    for dim in range(2):
        padded.append(image[dim] * enlarge[dim] + padding[2 * dim] + padding[2 * dim + 1])
        within(op, "the height and width of the padded, enlarged image", padded[dim], 0, MOST_EXTENT)
        room = padded[dim] - (dilation[dim] * (kernel[dim] - 1) + 1)
        if room < 0:
            raise error(op, f"the kernel is larger than the padded input {tuple(image)}")
        found.append(room // stride[dim] + 1)
    sizes(op, (batch, sum(x.shape[1] for x in images), *padded))
    return found[0], found[1]


def weight_scales(op: str, scale: Tensor, channels: int) -> None:
    """Finite numbers, one for each channel."""
    vector(op, "weight scales", scale, channels)
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise error(op, "weight scales must be finite numbers of at least 0")


def scales_and_sums(op: str, scale: Tensor, sums: Tensor, channels: int) -> None:
    """Of a packed weight: finite scales, and sums that kernels multiply by up to 255 in 32 bits."""
    if sums.dtype != torch.int32 or sums.dim() != 1 or sums.shape[0] != channels or not sums.is_contiguous():
        raise error(op, "weight sums must be those of pack_weight")
    weight_scales(op, scale, channels)
    if int(sums.long().abs().max()) > MOST_WEIGHTS:
        raise error(op, f"weight sums must be those of pack_weight, none above {MOST_WEIGHTS}")


def number_of(op: str, what: str, x: Tensor) -> float | int:
    """The one number that a tensor holds."""
    plain(op, [x])
    if x.is_meta or x.numel() != 1 or x.dtype not in NUMBERS:
        raise error(op, f"{what} must hold one real number, not {x.dtype} {tuple(x.shape)} on {x.device}")
    return x.item()
