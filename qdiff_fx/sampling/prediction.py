"""One call of a network, whatever its arguments are called and whatever it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qdiff_fx.signature.call import CallSignature
from qdiff_fx.signature.roles import SAMPLE_NAME, TIMESTEP_NAMES, positional_names


def predict(unet: Callable[..., Any], sample: Tensor, timestep: Any, **conditioning: Any) -> Tensor:
    """The network's prediction as a tensor, whether it returns a diffusers output, a tuple or a tensor."""
    name = _timestep_name(unet, conditioning)
    if name is None:
        return prediction_of(unet(sample, timestep, **conditioning))
    return prediction_of(unet(sample, **{name: timestep}, **conditioning))


def prediction_of(output: Any) -> Tensor:
    """The tensor in what a network returns: a tensor, a tuple, or a diffusers output, whatever its first field is."""
    if isinstance(output, tuple):
        output = output[0]
    elif isinstance(output, Mapping) and output:
        output = next(iter(output.values()))
    tensor: Tensor = output if isinstance(output, Tensor) else output.sample
    return tensor


def names_of(unet: Callable[..., Any], conditioning: Mapping[str, Any]) -> tuple[str, str]:
    """What the network calls the sample and the timestep, as far as it has names for them."""
    if not isinstance(unet, nn.Module):
        return SAMPLE_NAME, TIMESTEP_NAMES[0]
    names = positional_names(unet)
    second = next((name for name in names[1:] if name not in conditioning), TIMESTEP_NAMES[0])
    return names[0], _timestep_name(unet, conditioning) or second


def _timestep_name(unet: Callable[..., Any], conditioning: Mapping[str, Any]) -> str | None:
    """The name that t has to be passed by where it is not the second argument, as in ``forward(x, labels, t)``."""
    if not isinstance(unet, nn.Module):
        return None
    signature = getattr(unet, "signature", None)
    if isinstance(signature, CallSignature) and signature.timestep is not None:
        return signature.timestep.name
    names = positional_names(unet)
    if names[1:2] and names[1] not in conditioning and names[1] in TIMESTEP_NAMES:
        return None
    return next((name for name in TIMESTEP_NAMES if name in names and name not in conditioning), None)
