"""The tiny pipeline of Stable Diffusion's layout that an example makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "quantize_pipeline.py"


def tiny_pipeline() -> Any:
    spec = importlib.util.spec_from_file_location("quantize_pipeline", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = module.tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe
