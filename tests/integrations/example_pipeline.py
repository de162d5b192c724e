"""A tiny pipeline of Stable Diffusion's layout with its UNet quantized."""

from __future__ import annotations

from typing import Any

from qdiff_fx import QDiffConfig, calibrate, collect_calibration_data, convert_qdiff, prepare_qdiff
from tests.pipelines.parts import tiny_pipeline

__all__ = ["PROMPTS", "tiny_pipeline", "with_quantized_unet"]

PROMPTS = ["a fish", "two birds"]


def with_quantized_unet(pipe: Any) -> Any:
    """The same pipeline; W4A8 on native kernels."""
    data = collect_calibration_data(
        pipe, num_samples=2, num_inference_steps=2, seed=0, inputs={"prompt": PROMPTS}, progress=False
    )
    prepared = prepare_qdiff(pipe.unet, QDiffConfig(weight_bits=4, timestep_bins=2), data[0])
    calibrate(prepared, data, progress=False)
    pipe.unet = convert_qdiff(prepared)
    return pipe
