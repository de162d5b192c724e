"""Which argument of a diffusion network is the sample, and which the timestep: decided here for everybody."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn

from qdiff_fx.signature.call import CallSignature, forward_parameters

SAMPLE_NAME = "sample"
TIMESTEP_NAMES = (
    *("timestep", "t", "timesteps", "time", "sigma"),  # most networks
    *("sigmas", "time_step", "time_steps", "ts", "noise_cond", "noise_labels", "c_noise", "log_snr", "noise_level"),
)
LABEL_NAMES = ("y", "label", "labels", "class_label", "class_labels", "classes", "class_id", "class_ids")
OFTEN_LABELS = ("c", "cond", "condition", "context")
DIFFUSERS_ARGUMENTS = ("sample", "timestep", "encoder_hidden_states")


def sample_argument(arguments: Mapping[str, Any]) -> str | None:
    """The argument that holds x_t: "sample", or the first one that is not called as a timestep."""
    if SAMPLE_NAME in arguments:
        return SAMPLE_NAME
    return next((name for name in arguments if name not in TIMESTEP_NAMES), next(iter(arguments), None))


def timestep_argument(arguments: Mapping[str, Any], required: Collection[str] | None = None) -> str | None:
    """The argument that holds t, or None where none can.

    By name first. Else by place and value: after the sample, the first that is a number, 0-d, or one number per
    sample, as in ``unet(x_t, s)``; what is often a label only where nothing else fits, what is called a label never.

    Args:
        arguments: of one call of the network's `forward`, in its order; top-level names have no dot in them.
        required: the parameters without a default, where they are known: others are only taken by name.
    """
    for name in TIMESTEP_NAMES:
        if _is_number(arguments.get(name)):
            return name
    sample = sample_argument(arguments)
    rows = _row_count(arguments.get(sample or ""))
    fitting = [
        name
        for name, value in arguments.items()
        if name != sample and "." not in name and name not in LABEL_NAMES and (required is None or name in required)
        if _is_number(value) and (not isinstance(value, torch.Tensor) or value.numel() in (1, rows))
    ]
    return min(fitting, key=OFTEN_LABELS.__contains__, default=None)


def timestep_of_call(network: nn.Module, arguments: Mapping[str, Any]) -> str | None:
    """`timestep_argument` of a call of that network: a captured one knows it, of another its parameters are asked."""
    signature = getattr(network, "signature", None)
    if isinstance(signature, CallSignature):
        return signature.timestep.name if signature.timestep else None
    parameters = forward_parameters(network.forward)
    return timestep_argument(arguments, [p.name for p in parameters if p.required] if parameters else None)


def positional_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments; those of diffusers for a network that just takes *args."""
    signature = getattr(network, "signature", None)
    if isinstance(signature, CallSignature):
        parameters = signature.parameters
    else:
        parameters = forward_parameters(network.forward)
    return tuple(p.name for p in parameters if not p.keyword_only) or DIFFUSERS_ARGUMENTS


def _is_number(value: Any) -> bool:
    """One number, or one for each of several samples."""
    if isinstance(value, torch.Tensor):
        return value.dim() <= 1 and value.dtype != torch.bool and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


def _row_count(sample: Any) -> int:
    return sample.shape[0] if isinstance(sample, torch.Tensor) and sample.dim() else 1
