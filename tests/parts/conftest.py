"""A tiny pipeline of Stable Diffusion's layout, in float and with all its parts quantized."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from whole import QUIET, tiny_pipeline  # noqa: E402

import qdiff_fx  # noqa: E402


@pytest.fixture
def float_pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def quantized_pipeline() -> Any:
    """W8A8, and every other part by its own recipe. Not to be changed."""
    return qdiff_fx.quantize(tiny_pipeline(), "w8a8", ["a fish", "two birds"], **QUIET)


@pytest.fixture(scope="session")
def saved(quantized_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    quantized_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`quantize` on two trajectories of two steps."""
    from qdiff_fx.workflow import one_call

    monkeypatch.setattr(one_call, "SAMPLES", 2)
    return lambda pipe, *given, **more: qdiff_fx.quantize(pipe, *given, **{**QUIET, **more})
