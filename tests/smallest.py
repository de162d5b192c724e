"""Changes that make a UNet of diffusers as small as it gets, and its capture as short."""

from __future__ import annotations

from typing import Any

ONE_RESOLUTION: dict[str, Any] = {
    "block_out_channels": (16,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
ONE_CROSS_ATTENTION = ONE_RESOLUTION | {"down_block_types": ("CrossAttnDownBlock2D",)}
