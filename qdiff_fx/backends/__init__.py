"""One backend per file, one line per backend here."""

from __future__ import annotations

from qdiff_fx.backends.common.base import Backend, LayerReport, Lowered, LoweringOptions
from qdiff_fx.backends.inductor.backend import InductorBackend
from qdiff_fx.backends.native import NativeBackend
from qdiff_fx.backends.reference import ReferenceBackend
from qdiff_fx.backends.torch_ao.backend import TorchAOBackend
from qdiff_fx.errors import BackendError

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        ReferenceBackend(),
        NativeBackend(),
        InductorBackend(),
        TorchAOBackend("x86"),
        TorchAOBackend("qnnpack"),
    )
}


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: the name is unknown, or this machine cannot run the backend.
    """
    if name not in BACKENDS:
        raise BackendError(
            "there is no such backend", where=f"backend={name!r}", fix=f"Choose one of {', '.join(BACKENDS)}"
        )
    reason = BACKENDS[name].unavailable()
    if reason:
        raise BackendError(reason, where=f"backend={name!r}", fix='backend="reference" runs everywhere')
    return BACKENDS[name]


__all__ = ["BACKENDS", "Backend", "LayerReport", "Lowered", "LoweringOptions", "get_backend"]
