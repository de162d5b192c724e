"""Calls of the operators as files that `driver.cpp` reads, and the results that it writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_calls import (
    Call,
    attentions,
    convolution_at_the_bound,
    convolutions,
    depthwise_convolutions,
    extreme_linears,
    feedback_roundings,
    grams,
    group_norms,
    histograms,
    layer_norms,
    linears,
    nearest_codes,
    quantizations,
    second_codes,
    small_convolutions,
)
from torch import Tensor

_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int8: "s8"}
_NUMBERS = list(_TYPES)  # as `Type` of attention.h counts
_CHANNELS_SECOND = ("int_conv", "int_depthwise_conv", "group_norm_act")
_NO_QUANTIZER = {"out_scale": 1.0, "out_zero_point": 0, "out_low": 0, "out_high": 0}


def write_cases(path: Path, calls: Iterable[Call]) -> None:
    path.write_bytes(b"".join(_case(call) for call in calls))


def read_results(path: Path, calls: Sequence[Call], references: Sequence[Tensor]) -> list[Tensor]:
    """The results of calls one by one, shaped and typed as those of plain torch are."""
    everything = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    results, at = [], 0
    for call, reference in zip(calls, references, strict=True):
        end = at + reference.numel() * reference.element_size()
        made = everything[at:end].clone().view(reference.dtype)
        second = call.operator in _CHANNELS_SECOND
        shape = reference.movedim(1, -1).shape if second else reference.shape
        results.append(made.view(shape).movedim(-1, 1) if second else made.view(shape))
        at = end
    assert at == everything.numel(), "the driver wrote results of another size"
    return results


def _case(call: Call) -> bytes:
    lines = [f"call {call.operator}\n".encode()]
    for name, value in _LAYOUTS[call.operator](dict(call.arguments)).items():
        of_tensors = isinstance(value, list) and isinstance(value[0], Tensor)
        lines += [_line(name, each) for each in (value if of_tensors else [value])]
    return b"".join([*lines, b"end\n"])


def _line(name: str, value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, Tensor):
        sizes = " ".join(map(str, value.shape))
        memory = value.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy().tobytes()
        return f"tensor {name} {_TYPES[value.dtype]} {sizes}\n".encode() + memory + b"\n"
    if isinstance(value, torch.dtype):
        value = _NUMBERS.index(value)
    values = value if isinstance(value, (list, tuple)) else [value]
    if all(isinstance(each, int) for each in values):
        return f"integers {name} {' '.join(map(str, values))}\n".encode()
    return f"numbers {name} {' '.join(float(each).hex() for each in values)}\n".encode()


# ----------------------------------------------------------------------------- arguments as the driver takes them


def _of_convolution(arguments: dict[str, Any]) -> dict[str, Any]:
    codes, residual = [x.movedim(1, -1) for x in arguments["codes"]], arguments["residual"]
    return arguments | {"codes": codes, "residual": None if residual is None else residual.movedim(1, -1)}


def _of_depthwise_convolution(arguments: dict[str, Any]) -> dict[str, Any]:
    residual = arguments["residual"]
    images = {"codes": arguments["codes"].movedim(1, -1)}
    return arguments | images | {"residual": None if residual is None else residual.movedim(1, -1)}


def _of_linear(arguments: dict[str, Any]) -> dict[str, Any]:
    count, residual = len(arguments["weights"]), arguments["residual"]
    rows = {"codes": _rows(arguments["codes"]), "residual": None if residual is None else _rows(residual)}
    return arguments | rows | {"scales": [arguments["scale"]] * count, "zero_points": [arguments["zero_point"]] * count}


def _of_group_norm(arguments: dict[str, Any]) -> dict[str, Any]:
    parts = [part.movedim(1, -1).reshape(len(part), -1, part.shape[1]) for part in arguments["parts"]]
    return arguments | {"parts": parts}


def _of_rows(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"x": _rows(arguments["x"])}


def _of_attention(arguments: dict[str, Any]) -> dict[str, Any]:
    q, mask = arguments["q"], arguments["mask"]
    operands = {name: _heads(arguments[name]) for name in ("q", "k", "v")}
    scales = {name: float(arguments[name]) for name in ("q_scale", "k_scale", "v_scale")}
    if mask is not None:
        added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask.float()
        mask = _heads(added.expand(*q.shape[:-1], arguments["k"].shape[-2]))
    numbers = {"q_zero_point": int(arguments["q_zero_point"]), "mask": mask}
    return _NO_QUANTIZER | arguments | operands | scales | numbers


def _of_gram(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {"total": arguments["total"].view(torch.uint8)}


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _heads(x: Tensor) -> Tensor:
    """(batch, heads, tokens, dims or keys)."""
    return x if x.dim() == 4 else x.reshape(-1, 1, *x.shape[-2:])


_LAYOUTS = {
    "int_conv": _of_convolution,
    "int_depthwise_conv": _of_depthwise_convolution,
    "int_gram": _of_gram,
    "int_linear": _of_linear,
    "group_norm_act": _of_group_norm,
    "layer_norm_act": _of_rows,
    "round_with_feedback": dict,
    "nearest_codes": dict,
    "histogram": dict,
    "act_quantize": _of_rows,
    "act_quantize_rest": _of_rows,
    "int_attention_vnni": _of_attention,
}


# ------------------------------------------------------------------------------------------------ what is written


def drawn_calls(each: int) -> tuple[list[Call], list[Tensor]]:
    """Calls of all operators, `each` of every kind and some at the limits, and what plain torch makes of them.

    They are the same whenever they are drawn. Those without a result have nothing to compare.
    """
    calls = [call for strategy in _STRATEGIES for call in _drawn(strategy(), each)]
    calls += [
        convolution_at_the_bound(over, sign, code) for over in (-1, 0, 1) for sign in (-1, 1) for code in (0, 255)
    ]
    both = [(call, call.reference()) for call in calls]
    both = [(call, reference) for call, reference in both if reference.numel()]
    return [call for call, _ in both], [reference for _, reference in both]


def _drawn(strategy: st.SearchStrategy[Call], count: int) -> list[Call]:
    calls: list[Call] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(strategy)
    def collect(call: Call) -> None:
        calls.append(call)

    collect()
    return calls


_STRATEGIES = (
    convolutions,
    small_convolutions,
    depthwise_convolutions,
    linears,
    extreme_linears,
    feedback_roundings,
    grams,
    nearest_codes,
    histograms,
    group_norms,
    layer_norms,
    quantizations,
    second_codes,
    attentions,
)
