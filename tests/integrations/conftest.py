"""A tiny pipeline of Stable Diffusion's layout, float and with a quantized UNet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from example_pipeline import tiny_pipeline  # noqa: E402

from qdiff_fx import QDiffConfig, calibrate, collect_calibration_data, convert_qdiff, prepare_qdiff  # noqa: E402

PROMPTS = ["a fish", "two birds"]


@pytest.fixture
def float_pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def quantized_pipeline() -> Any:
    """W4A8 on native kernels. Not to be changed."""
    pipe = tiny_pipeline()
    data = collect_calibration_data(
        pipe, num_samples=2, num_inference_steps=2, seed=0, inputs={"prompt": PROMPTS}, progress=False
    )
    prepared = prepare_qdiff(pipe.unet, QDiffConfig(weight_bits=4, timestep_bins=2), data[0])
    calibrate(prepared, data, progress=False)
    pipe.unet = convert_qdiff(prepared)
    return pipe
