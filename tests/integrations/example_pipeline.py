"""The tiny pipeline of Stable Diffusion's layout that an example makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from qdiff_fx import QDiffConfig, calibrate, collect_calibration_data, convert_qdiff, prepare_qdiff

EXAMPLE = Path(__file__).parents[2] / "examples" / "quantize_pipeline.py"

PROMPTS = ["a fish", "two birds"]


def tiny_pipeline() -> Any:
    spec = importlib.util.spec_from_file_location("quantize_pipeline", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = module.tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_quantized_unet(pipe: Any) -> Any:
    """The same pipeline; W4A8 on native kernels."""
    data = collect_calibration_data(
        pipe, num_samples=2, num_inference_steps=2, seed=0, inputs={"prompt": PROMPTS}, progress=False
    )
    prepared = prepare_qdiff(pipe.unet, QDiffConfig(weight_bits=4, timestep_bins=2), data[0])
    calibrate(prepared, data, progress=False)
    pipe.unet = convert_qdiff(prepared)
    return pipe
