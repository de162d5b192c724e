"""OpenVINO's models, as everybody here runs them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

MODEL_FILE = "model.xml"


def compiled(model: Any, settings: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A model, or its file, made ready for this process' number of threads, for one call after the other."""
    import openvino

    usual = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(model, "CPU", usual | dict(settings))
