"""Which backends there are. Each is imported when it is first asked for, with whatever it needs."""

from __future__ import annotations

import functools
import importlib
from typing import cast

from qdiff_fx.backends.common.base import Backend
from qdiff_fx.errors import BackendError

# What users call it -> where its class is. A new backend adds a line, or calls `register`.
_PLACES = {
    "reference": "qdiff_fx.backends.reference:ReferenceBackend",
    "native": "qdiff_fx.backends.native.backend:NativeBackend",
    "inductor": "qdiff_fx.backends.inductor.backend:InductorBackend",
    "x86": "qdiff_fx.backends.torch_ao.backend:X86Backend",
    "qnnpack": "qdiff_fx.backends.torch_ao.backend:QnnpackBackend",
}


def register(name: str, place: str) -> None:
    """Make a backend known under a name.

    Args:
        name: what users pass as ``backend=``.
        place: ``"module.path:Class"``, a `Backend` that is made without arguments. It is imported when it is first
            asked for.

    Raises:
        BackendError: the name is taken by another class, or the place is not written like that.
    """
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise BackendError(f"{place!r} names no class", where=f"backend={name!r}", fix="Write module.path:Class")
    if _PLACES.setdefault(name, place) != place:
        raise BackendError(
            f"the name is taken by {_PLACES[name]}", where=f"backend={name!r}", fix="Register it by another name"
        )


def backend_names() -> tuple[str, ...]:
    """What can be passed as ``backend=``; not every one runs on every machine."""
    return tuple(_PLACES)


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: the name is unknown, or this machine cannot run the backend.
    """
    if name not in _PLACES:
        raise BackendError(
            "there is no such backend", where=f"backend={name!r}", fix=f"Choose one of {', '.join(_PLACES)}"
        )
    backend = _load(name, _PLACES[name])
    reason = backend.unavailable()
    if reason:
        raise BackendError(reason, where=f"backend={name!r}", fix='backend="reference" runs everywhere')
    return backend


@functools.cache
def _load(name: str, place: str) -> Backend:
    module, _, attribute = place.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise BackendError(
            f"it cannot be imported from {place} ({error})", where=f"backend={name!r}", fix="Install what it needs"
        ) from error
    return cast(Backend, made)
