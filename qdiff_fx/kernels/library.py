"""The `qdiff` operators, as torch.library sees them: schema, implementation, fake kernel."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.kernels import attention, checks, integer
from qdiff_fx.kernels.build import status
from qdiff_fx.kernels.timestep import timestep_bin as _timestep_bin

_library = torch.library.Library("qdiff", "FRAGMENT")  # the registrations live as long as this object

_ATTENTION_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor q_scale, Tensor q_zero_point, Tensor k_scale, "
    "Tensor v_scale, float softmax_scale, int prob_bits, ScalarType out_dtype) -> Tensor"
)
_ATTENTION_NUMBERS = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, float q_scale, int q_zero_point, float k_scale, float v_scale, "
    "float softmax_scale, int prob_bits, ScalarType out_dtype, float out_scale, int out_zero_point, int out_low, "
    "int out_high) -> Tensor"
)
_LANES, _VECTOR_BYTES = 16, 64  # of packed weights: kLanes and kVectorBytes of kernels.h
_QUANTIZER = "ScalarType out_dtype, float scale, int zero_point, int low, int high"
_OUTPUT = "ScalarType out_dtype, float out_scale, int out_zero_point, int out_low, int out_high"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"int8 kernels run in plain torch, slowly: {reason}", RuntimeWarning, stacklevel=4)


def _compiled_or(overload: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Builds and loads the compiled kernels at the first call; without them runs the reference.

    Loading registers C++ kernels for the CPU over these functions, so they are left after the first call.
    """

    packet, name = overload.split(".")

    def run(*args: Any) -> Any:
        state = status()
        if state.available and _is_for_cpu(args):
            return getattr(getattr(torch.ops.qdiff, packet), name)(*args)
        if not state.available and not state.disabled:
            _warn_once(state.reason)
        return reference(*args)

    return run


def _checked(op: str, schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, given no less than the schema says, and tensors that it can look at."""
    needed = [index for index, each in enumerate(schema.lstrip("(").split(", ")) if each.startswith("Tensor ")]

    def run(*args: Any) -> Any:
        # Tensors of other layouts come here on the CPU too, and would again from `_compiled_or`.
        if any(args[index] is None for index in needed):
            raise checks.error(op, "a tensor is missing")
        checks.plain(op, _tensors(args))
        return function(*args)

    return run


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for each in args:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from (item for item in each if isinstance(item, Tensor))


def _is_for_cpu(args: tuple[Any, ...]) -> bool:
    return any(x.device.type == "cpu" for x in _tensors(args)) and not any(x.is_meta for x in _tensors(args))


def _fake_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    softmax_scale, prob_bits, out_dtype = rest[-3:]
    attention.check_arguments(q, k, v, mask, softmax_scale, prob_bits, out_dtype)
    return attention.empty_output(q, out_dtype)


def _attention_by_numbers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits, out_dtype, *quantizer = rest
    codes = out_dtype in integer.CODES
    dtype = torch.float32 if codes else out_dtype
    if codes:
        checks.quantizer("int_attention", out_dtype, *quantizer)
    q_scale, q_zero_point, k_scale, v_scale = map(torch.tensor, (q_scale, q_zero_point, k_scale, v_scale))
    out = attention.int_attention(
        q, k, v, mask, q_scale, q_zero_point, k_scale, v_scale, softmax_scale, prob_bits, dtype
    )
    return integer.act_quantize(out, integer.Activation.NONE, out_dtype, *quantizer) if codes else out


def _fake_attention_by_numbers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    softmax_scale, prob_bits, out_dtype = rest[4:7]
    dtype = torch.float32 if out_dtype in integer.CODES else out_dtype
    attention.check_arguments(q, k, v, mask, softmax_scale, prob_bits, dtype)
    return attention.empty_output(q, out_dtype)


def _define_attention(
    name: str, schema: str, implementation: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> None:
    # The kernel reads any strides, but the result's layout follows q's: the compiler must keep them.
    tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
    _register(name, "int_attention", schema, tags, implementation, fake)


def _register(
    name: str,
    op: str,
    schema: str,
    tags: tuple[torch.Tag, ...],
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """`op` is what errors call it."""
    _library.define(name + schema, tags=tags)
    _library.impl(name, _checked(op, schema, implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"qdiff::{name}", _checked(op, schema, fake), lib=_library)


def _fake_pack(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    integer.check_pack(codes, bits)
    out, inputs = codes.shape[:2]
    if not (codes.device.type == "cpu" and status().available):
        return codes.new_empty(codes.numel()), codes.new_empty(out, dtype=torch.int32)
    vectors = -(-out // _LANES)
    quads = math.prod(codes.shape[2:]) * -(-inputs // 4)
    sums = codes.new_empty(vectors * _LANES, dtype=torch.int32)
    if bits > 4:
        return codes.new_empty(quads * vectors * _VECTOR_BYTES), sums
    return codes.new_empty(quads * -(-vectors // 2) * _VECTOR_BYTES, dtype=torch.uint8), sums


def _fake_conv(codes: Sequence[Tensor], *args: Any) -> Tensor:
    batch, out_channels, height, width = integer.check_conv(codes, *args[5:11], *args[14:16])
    return codes[0].new_empty((batch, height, width, out_channels), dtype=args[15]).permute(0, 3, 1, 2)


def _fake_linear(codes: Tensor, *args: Any) -> Tensor:
    weights, out_features, activation, out_dtype = args[2], args[5], *args[8:10]
    size = integer.check_linear(codes, out_features, len(weights), activation, out_dtype)
    return codes.new_empty(size, dtype=out_dtype)


def _fake_group_norm(parts: Sequence[Tensor], *args: Any) -> Tensor:
    groups, activation, out_dtype = args[0], *args[4:6]
    integer.check_group_norm(parts, groups, activation, out_dtype)
    first = parts[0]
    sizes = (first.shape[0], *first.shape[2:], sum(part.shape[1] for part in parts))
    return first.new_empty(sizes, dtype=out_dtype).movedim(-1, 1)


def _fake_layer_norm(x: Tensor, *args: Any) -> Tensor:
    integer.check_layer_norm(x, args[3])
    return x.new_empty(x.shape, dtype=args[3])


def _fake_act_quantize(x: Tensor, activation: int, out_dtype: torch.dtype, *args: Any) -> Tensor:
    return _like_activated("act_quantize", x, activation, out_dtype)


def _fake_act_quantize_rest(x: Tensor, activation: int, *args: Any) -> Tensor:
    return _like_activated("act_quantize_rest", x, activation, torch.uint8)


def _like_activated(op: str, x: Tensor, activation: int, out_dtype: torch.dtype) -> Tensor:
    integer.check_act_quantize(op, x, activation, out_dtype)
    if activation == integer.Activation.GEGLU:
        return x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=out_dtype)
    return torch.empty_like(x, dtype=out_dtype)


def _define(name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    implementation = _compiled_or(f"{name}.default", reference)
    _register(name, name, schema, (torch.Tag.pt2_compliant_tag,), implementation, fake)


_define_attention("int_attention", _ATTENTION_SCHEMA, attention.int_attention, _fake_attention)
_define_attention(
    "int_attention_vnni",
    _ATTENTION_SCHEMA,
    _compiled_or("int_attention_vnni.default", attention.int_attention),
    _fake_attention,
)
_define_attention(
    "int_attention_vnni.numbers",
    _ATTENTION_NUMBERS,
    _compiled_or("int_attention_vnni.numbers", _attention_by_numbers),
    _fake_attention_by_numbers,
)
_define("pack_weight", "(Tensor codes, int bits) -> (Tensor, Tensor)", integer.pack_weight, _fake_pack)
_define(
    "int_conv",
    "(Tensor[] codes, float[] scales, int[] zero_points, Tensor[] weights, Tensor[] weight_scales, "
    "Tensor[] weight_sums, int out_channels, int[] kernel, int[] stride, int[] padding, int[] dilation, "
    f"int[] enlarge, Tensor? bias, Tensor? shift, Tensor? residual, int activation, {_OUTPUT}) -> Tensor",
    integer.int_conv,
    _fake_conv,
)
_define(
    "int_linear",
    "(Tensor codes, float scale, int zero_point, Tensor[] weights, Tensor[] weight_scales, Tensor[] weight_sums, "
    f"int out_features, Tensor? bias, Tensor? residual, int activation, {_OUTPUT}) -> Tensor",
    integer.int_linear,
    _fake_linear,
)
_define(
    "group_norm_act",
    "(Tensor[] parts, int groups, Tensor? weight, Tensor? bias, float epsilon, int activation, "
    f"{_QUANTIZER}) -> Tensor",
    integer.group_norm_act,
    _fake_group_norm,
)
_define(
    "layer_norm_act",
    f"(Tensor x, Tensor? weight, Tensor? bias, float epsilon, {_QUANTIZER}) -> Tensor",
    integer.layer_norm_act,
    _fake_layer_norm,
)
_define("act_quantize", f"(Tensor x, int activation, {_QUANTIZER}) -> Tensor", integer.act_quantize, _fake_act_quantize)
_define(
    "act_quantize_rest",
    "(Tensor x, int activation, float scale, int zero_point, int low, int high, float rest_scale, int rest_zero_point) "
    "-> Tensor",
    integer.act_quantize_rest,
    _fake_act_quantize_rest,
)

_library.define(
    "timestep_bin(Tensor timestep, int bins, int num_train_timesteps, float start=0.0, float stop=0.0) -> Tensor"
)
_library.impl("timestep_bin", _timestep_bin, "CompositeImplicitAutograd")

int_attention = torch.ops.qdiff.int_attention.default
int_attention_vnni = torch.ops.qdiff.int_attention_vnni.default
timestep_bin = torch.ops.qdiff.timestep_bin.default
