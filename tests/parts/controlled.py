"""The smallest pipelines with a ControlNet that draw, and what they draw by."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionControlNetPipeline

from tests.pipelines.images import controlnet, picture
from tests.pipelines.parts import ready, stable_diffusion_parts, unet
from tests.smallest import ONE_CROSS_ATTENTION

PICTURE = picture()
DRAWN: dict[str, Any] = {"prompt": ["a fish", "two birds"], "image": [PICTURE, PICTURE.rotate(90)]}


def small_unet(**changes: Any) -> Any:
    return unet(**(ONE_CROSS_ATTENTION | {"mid_block_type": "UNetMidBlock2D"} | changes))


def controlled(nets: int = 1, **changes: Any) -> Any:
    """Stable Diffusion with so many ControlNets; `changes` replace parts."""
    torch.manual_seed(0)
    network = small_unet()
    own = [controlnet(network) for _ in range(nets)]
    parts = {"unet": network, "controlnet": own[0] if nets == 1 else own} | stable_diffusion_parts() | changes
    return ready(StableDiffusionControlNetPipeline(**parts))


def step(rows: int = 2) -> dict[str, Any]:
    """Arguments of a ControlNet."""
    seed = torch.Generator().manual_seed(5)
    return {
        "sample": torch.randn(rows, 4, 16, 16, generator=seed),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(rows, 24, 32, generator=seed),
        "controlnet_cond": torch.rand(rows, 3, 32, 32, generator=seed),
    }
