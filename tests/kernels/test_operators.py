"""Every operator we register, as torch judges it: schema, fake kernel, dispatch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels.activations import Activation

ops = torch.ops.qdiff
PREFIX = "qdiff::"
FLOATS = (1.0, 0, 0, 0)  # the quantizer of a result that stays floating
Sample = Callable[[], tuple[Any, ...]]


def registered() -> list[str]:
    """Of every operator its overloads, "int_attention_vnni.numbers"; the first of each is "default".

    But for the one that takes and returns no tensor: it chooses how the compiled kernels convolve.
    """
    names = [name.removeprefix(PREFIX) for name in torch._C._dispatch_get_all_op_names() if name.startswith(PREFIX)]
    tensors = [name for name in names if name != "set_convolution_algorithm"]
    return sorted(name if "." in name else f"{name}.default" for name in tensors)


def weight_codes(*shape: int, bits: int = 8) -> torch.Tensor:
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=torch.int8)


def codes(*shape: int) -> torch.Tensor:
    """Of an image, channels last as a network has it."""
    found = torch.randint(0, 256, shape, dtype=torch.uint8)
    return found.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else found


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def packed(*shape: int, bits: int = 8) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    weight, sums = ops.pack_weight(weight_codes(*shape, bits=bits), bits)
    return [weight], [torch.rand(sums.numel()) / 100], [sums]


def attention(dtype: torch.dtype = torch.float32, tokens_outside: bool = True) -> tuple[Any, ...]:
    shape = (2, 10, 3, 8) if tokens_outside else (2, 3, 10, 8)
    found = [codes(*shape).view(torch.uint8), weight_codes(*shape), weight_codes(*shape)]
    q, k, v = (x.contiguous().transpose(1, 2) if tokens_outside else x.contiguous() for x in found)
    scale = torch.tensor(0.02)
    return (q, k, v, None, scale, torch.tensor(128), scale, scale, 0.35, 8, dtype)


def attention_numbers(dtype: torch.dtype, *quantizer: Any) -> tuple[Any, ...]:
    return (*attention()[:4], 0.02, 128, 0.02, 0.02, 0.35, 8, dtype, *quantizer)


def convolution(bits: int, dtype: torch.dtype, *quantizer: Any) -> tuple[Any, ...]:
    window = ([3, 3], [2, 1], [1, 0, 1, 1], [1, 1], [1, 2])
    return (
        *([codes(2, 5, 6, 7)], [0.02], [128], *packed(20, 5, 3, 3, bits=bits), 20, *window),
        *(torch.randn(20), torch.randn(2, 20), None, Activation.SILU.value, dtype, *quantizer),
    )


def depthwise_convolution(channels: int, dtype: torch.dtype, *quantizer: Any) -> tuple[Any, ...]:
    weight, window = weight_codes(3, 3, channels), ([2, 1], [1, 0, 1, 1], [1, 2])
    operands = (codes(2, channels, 6, 7), 0.02, 128, weight, torch.rand(channels) / 100)
    return (*operands, *window, torch.randn(channels), None, Activation.SILU.value, dtype, *quantizer)


def linear(bits: int, dtype: torch.dtype, *quantizer: Any) -> tuple[Any, ...]:
    residual = torch.randn(3, 4, 20, dtype=torch.float16)
    found = packed(20, 9, bits=bits)
    return (codes(3, 4, 9), 0.02, 128, *found, 20, torch.randn(20), residual, 0, dtype, *quantizer)


TO_UINT8, TO_INT8 = (torch.uint8, 0.05, 100, 0, 255), (torch.int8, 0.05, 0, -128, 127)


def adaround(bits: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    up, first, second, gradient = (torch.randn(5, 19) for _ in range(4))
    moved = (up, first, second.abs(), torch.empty(5, 19, dtype=dtype))
    return (*moved, weight_codes(5, 19, bits=bits), torch.rand(5), gradient.to(dtype), bits, 3, 0.02, 0.01, 3.5)


SAMPLES: dict[str, list[Sample]] = {
    "act_quantize.default": [
        lambda: (image(2, 6, 4, 5), Activation.GELU.value, *TO_UINT8),
        lambda: (torch.randn(3, 8).half(), Activation.GEGLU.value, torch.float16, *FLOATS),
        lambda: (torch.randn(3, 12)[:, 2:9], Activation.NONE.value, *TO_INT8),
    ],
    "act_quantize_rest.default": [lambda: (image(2, 6, 4, 5), Activation.SILU.value, 0.05, 100, 0, 255, 0.0002, 128)],
    "adaround_step.default": [adaround, lambda: adaround(8, torch.bfloat16)],
    "group_norm_act.default": [
        lambda: ([image(2, 4, 4, 5), image(2, 8, 4, 5)], 3, torch.randn(12), None, 1e-5, 1, *TO_UINT8),
        lambda: ([image(2, 4, 4, 5, dtype=torch.float16)], 2, None, None, 1e-5, 0, torch.float16, *FLOATS),
    ],
    "histogram.default": [
        lambda: (torch.randn(3, 40), -6, 512, 1),
        lambda: (torch.randn(2, 41)[:, 1:].half(), 3, 16, 3),
    ],
    "range_errors.default": [
        lambda: (
            torch.cat([torch.arange(9), torch.arange(4)]) / 8,
            torch.ones(11),
            [8, 3],
            torch.rand(2, 5) / 9 + 0.01,
            torch.zeros(2, 5),
            torch.full((2, 5), 9.0),
            2.4,
        )
    ],
    "int_attention.default": [attention, lambda: attention(torch.bfloat16, tokens_outside=False)],
    "int_attention_vnni.default": [attention, lambda: attention(torch.bfloat16, tokens_outside=False)],
    "int_attention_vnni.numbers": [
        lambda: attention_numbers(torch.float16, *FLOATS),
        lambda: attention_numbers(*TO_UINT8),
    ],
    "int_conv.default": [lambda: convolution(8, torch.float16, *FLOATS), lambda: convolution(4, *TO_UINT8)],
    "int_depthwise_conv.default": [
        lambda: depthwise_convolution(20, torch.float16, *FLOATS),
        lambda: depthwise_convolution(64, *TO_UINT8),
    ],
    "int_gram.default": [
        lambda: (torch.zeros(9, 9, dtype=torch.int32), weight_codes(20, 9)),
        lambda: (torch.randint(-9, 9, (70, 70), dtype=torch.int32), weight_codes(5, 70)),
    ],
    "int_linear.default": [lambda: linear(8, torch.float32, *FLOATS), lambda: linear(3, *TO_INT8)],
    "layer_norm_act.default": [
        lambda: (torch.randn(2, 3, 8), torch.randn(8), torch.randn(8), 1e-5, *TO_UINT8),
        lambda: (torch.randn(2, 3, 8).half(), None, None, 1e-5, torch.float16, *FLOATS),
    ],
    "nearest_codes.default": [
        lambda: (torch.randn(5, 36), 4, 80, 0.01, 2.4),
        lambda: (torch.randn(36, 5).bfloat16().t(), 8, 1, 0.01, 2.4),
    ],
    "pack_weight.default": [
        lambda: (weight_codes(20, 5, 3, 3), 8),
        lambda: (weight_codes(70, 9, bits=4), 4),
        lambda: (weight_codes(17, 3, 5, bits=2), 2),
    ],
    "round_with_feedback.default": [
        lambda: (torch.randn(9, 20), torch.randn(9, 20), torch.eye(9), -8, 7),
        lambda: (torch.randn(128, 3) * 50, torch.zeros(128, 3), torch.eye(128) + 0.1, -128, 127),
    ],
    "timestep_bin.default": [lambda: (torch.tensor([500.0, 500.0]), 10, 1000), lambda: (torch.tensor(3), 4, 1000)],
    "widen.default": [lambda: (torch.randn(5, 3, 3, 3).half(),), lambda: (torch.randn(5, 7).bfloat16()[:, 2:5],)],
}


def test_every_operator_is_a_file_of_its_name():
    files = {file.stem for file in Path(plain.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(plain.__all__)
    assert {name.split(".")[0] for name in registered()} - files == {"int_attention_vnni"}  # beside int_attention


def test_every_compiled_operator_is_a_file_of_that_name_too():
    room = Path(plain.__file__).parents[1] / "csrc" / "ops"
    assert {name for name in plain.__all__ if not (room / f"{name}.cpp").exists()} == {"timestep_bin", "widen"}


def test_every_operator_has_samples():
    assert registered() == sorted(SAMPLES)


@pytest.mark.parametrize(("name", "sample"), [(name, s) for name, found in SAMPLES.items() for s in found])
def test_opcheck(name: str, sample: Sample) -> None:
    torch.manual_seed(0)
    packet, overload = name.split(".")
    torch.library.opcheck(getattr(getattr(ops, packet), overload), sample())
