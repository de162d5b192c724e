"""Which part of a pipeline is the network that denoises."""

from __future__ import annotations

from typing import Any

from torch import nn

from qdiff_fx.errors import CalibrationError

NAMES = ("unet", "transformer", "prior", "decoder")
"""What pipelines call it: a UNet, a transformer; what draws priors (Kandinsky, Würstchen) and what decodes them."""


def denoiser_name(pipeline: Any) -> str:
    """The attribute that holds it.

    Raises:
        CalibrationError: there is none, or several that could be meant.
    """
    found = [name for name in NAMES if isinstance(getattr(pipeline, name, None), nn.Module)]
    if "unet" in found:
        return "unet"
    if len(found) == 1:
        return found[0]
    what = f"several networks that may denoise ({', '.join(found)})" if found else f"none of {', '.join(NAMES)}"
    raise CalibrationError(
        f"{type(pipeline).__name__} has {what}",
        where="pipeline",
        fix="Pass a diffusers pipeline that denoises with one network, or the network itself and its scheduler",
    )


def denoiser_of(pipeline: Any) -> nn.Module:
    """The network itself; raises as `denoiser_name` does."""
    network: nn.Module = getattr(pipeline, denoiser_name(pipeline))
    return network
