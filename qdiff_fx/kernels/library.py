"""The `qdiff` operators, as torch.library sees them: schema, implementation, fake kernel."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from qdiff_fx.kernels import attention
from qdiff_fx.kernels.build import status
from qdiff_fx.kernels.timestep import timestep_bin as _timestep_bin

_ATTENTION_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor q_scale, Tensor q_zero_point, Tensor k_scale, "
    "Tensor v_scale, float softmax_scale, int prob_bits, ScalarType out_dtype) -> Tensor"
)
_library = torch.library.Library("qdiff", "FRAGMENT")  # the registrations live as long as this object


def _fake_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    q_scale: Tensor,
    q_zero_point: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    softmax_scale: float,
    prob_bits: int,
    out_dtype: torch.dtype,
) -> Tensor:
    attention.check_arguments(q, k, v, mask, softmax_scale, prob_bits, out_dtype)
    return attention.empty_output(q, out_dtype)


def _vnni_before_loading(q: Tensor, *args) -> Tensor:
    # Loading registers a C++ CPU kernel over this one, so on CPU this function is left after the first call.
    state = status()
    if state.available and q.device.type == "cpu":
        return torch.ops.qdiff.int_attention_vnni.default(q, *args)
    if not state.available and not state.disabled:
        _warn_once(state.reason)
    return attention.int_attention(q, *args)


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"int8 attention runs in plain torch, slowly: {reason}", RuntimeWarning, stacklevel=3)


def _define_attention(name: str, implementation) -> None:
    # The kernel reads any strides, but the result's layout follows q's: the compiler must keep them.
    tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
    _library.define(name + _ATTENTION_SCHEMA, tags=tags)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qdiff::{name}", _fake_attention, lib=_library)


_define_attention("int_attention", attention.int_attention)
_define_attention("int_attention_vnni", _vnni_before_loading)

_library.define("timestep_bin(Tensor timestep, int bins, int num_train_timesteps) -> Tensor")
_library.impl("timestep_bin", _timestep_bin, "CompositeImplicitAutograd")

int_attention = torch.ops.qdiff.int_attention.default
int_attention_vnni = torch.ops.qdiff.int_attention_vnni.default
timestep_bin = torch.ops.qdiff.timestep_bin.default
