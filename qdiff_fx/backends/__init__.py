"""What runs a quantized network: one backend per file or folder, one line per backend in ``registry.py``."""

from qdiff_fx.backends.common.base import Backend, BackendOptions, LayerReport, Lowered
from qdiff_fx.backends.registry import backend_names, get_backend, register

__all__ = ["Backend", "BackendOptions", "LayerReport", "Lowered", "backend_names", "get_backend", "register"]
