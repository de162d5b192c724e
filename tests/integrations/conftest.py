"""A tiny pipeline of Stable Diffusion's layout, float and with a quantized UNet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from example_pipeline import tiny_pipeline, with_quantized_unet  # noqa: E402


@pytest.fixture
def float_pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def quantized_pipeline() -> Any:
    """W4A8 on native kernels. Not to be changed."""
    return with_quantized_unet(tiny_pipeline())
