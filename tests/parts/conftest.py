"""A tiny pipeline of Stable Diffusion's layout, in float and with all its parts quantized."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from quickly import quickly  # noqa: E402
from whole import QUIET, tiny_pipeline  # noqa: E402

import qdiff_fx  # noqa: E402
from qdiff_fx import QDiffConfig  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _quick(quickly: None) -> None:
    """All of these."""


@pytest.fixture
def float_pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def quantized_pipeline() -> Any:
    """W8A8, and every other part by its own recipe. Not to be changed."""
    with quickly():
        return qdiff_fx.quantize(tiny_pipeline(), "w8a8", ["a fish", "two birds"], **QUIET)


@pytest.fixture(scope="session")
def saved(quantized_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    quantized_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`quantize` on two trajectories of two steps."""
    from qdiff_fx.workflow import enough

    monkeypatch.setattr(enough, "usual_trajectories", lambda steps: 2)
    nearest = QDiffConfig(weight_rounding="nearest", timestep_bins=2)
    return lambda pipe, **more: qdiff_fx.quantize(pipe, **{"bits": nearest, **QUIET, **more})
