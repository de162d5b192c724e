"""One call of a network, whatever its arguments are called and whatever it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qdiff_fx.signature.roles import TIMESTEP_NAMES, positional_names


def predict(unet: Callable[..., Any], sample: Tensor, timestep: Any, **conditioning: Any) -> Tensor:
    """The network's prediction as a tensor, whether it returns a diffusers output, a tuple or a tensor."""
    name = _timestep_name(unet, conditioning)
    if name is None:
        return prediction_of(unet(sample, timestep, **conditioning))
    return prediction_of(unet(sample, **{name: timestep}, **conditioning))


def prediction_of(output: Any) -> Tensor:
    """The tensor in what a network returns: a diffusers output, a tuple or a tensor."""
    if isinstance(output, tuple):
        output = output[0]
    tensor: Tensor = output if isinstance(output, Tensor) else output.sample
    return tensor


def _timestep_name(unet: Callable[..., Any], conditioning: Mapping[str, Any]) -> str | None:
    """Where conditioning stands in second place, as in ``forward(x, c, t)``, the name that t has to be passed by."""
    if not conditioning or not isinstance(unet, nn.Module):
        return None
    names = positional_names(unet)
    if names[1:2] and names[1] not in conditioning:
        return None
    return next((name for name in TIMESTEP_NAMES if name in names and name not in conditioning), None)
