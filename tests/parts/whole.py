"""Small pipelines with random weights, and what they draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from torch import Tensor

from tests.pipelines.parts import ready, sdxl_parts, tiny_pipeline, unet_xl

QUIET: dict[str, Any] = {"steps": 2, "budget": None, "progress": False}
STEPS = 3
__all__ = ["QUIET", "STEPS", "image", "psnr", "sqnr", "tiny_decoder", "tiny_pipeline", "tiny_xl"]


def tiny_xl() -> Any:
    """Stable Diffusion XL: two text encoders, of which one has a projection."""
    torch.manual_seed(0)
    return ready(StableDiffusionXLPipeline(unet=unet_xl(), **sdxl_parts()))


def tiny_decoder() -> AutoencoderTiny:
    """Of TAESD's kind: halves pictures twice."""
    torch.manual_seed(1)
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )


def image(pipe: Any, prompt: str = "a fish", **more: Any) -> np.ndarray:
    """(N, H, W, 3) in [0, 1]."""
    options = {"num_inference_steps": STEPS, "output_type": "np"} | more
    found: np.ndarray = pipe(prompt, generator=torch.Generator().manual_seed(3), **options).images
    return found


def psnr(expected: np.ndarray, found: np.ndarray) -> float:
    """dB, of pictures in [0, 1]."""
    return -10 * math.log10(float(((expected - found) ** 2).mean()))


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(20 * torch.log10(expected.norm() / (expected - found).norm()))
