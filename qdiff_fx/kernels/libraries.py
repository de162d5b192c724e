"""Opening our C++ libraries: which files are ours, of this version, and whole; and starting what they hold."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.build import Recipe, sources_version


class _Library(ctypes.Structure):
    """``qdiff::Library`` of library.h."""

    _fields_ = (("version", ctypes.c_uint64), ("kernels", ctypes.c_void_p))


@dataclass(frozen=True)
class Loaded:
    """A library in this process; its file may be gone."""

    path: Path
    handle: ctypes.CDLL


def load(path: Path, recipe: Recipe) -> Loaded:
    """Load a library, which runs nothing of ours yet; raises KernelError where it is none that can be used."""
    try:
        loaded = Loaded(path, ctypes.CDLL(str(path)))
        version = _version_of(loaded) if recipe.uses_torch else _set_of(loaded).version
    except OSError as error:
        raise KernelError(str(error), where=str(path)) from error
    except AttributeError as error:
        raise KernelError("it is no library of qdiff_fx's kernels", where=str(path)) from error
    if version != sources_version():
        raise KernelError("it was made of other sources than these, by another version of qdiff_fx", where=str(path))
    return loaded


def start(operators: Loaded, kernels: Loaded) -> Callable[[int], None]:
    """Register the operators with torch, for good; raises KernelError where they cannot be.

    Returns:
        What deletes the plan of a number.
    """
    begin = operators.handle.qdiff_start
    begin.restype, begin.argtypes = ctypes.c_char_p, [ctypes.POINTER(_Library)]
    reason = begin(ctypes.byref(_set_of(kernels)))
    if reason:
        raise KernelError(reason.decode(errors="replace"), where=str(operators.path))
    delete_plan = operators.handle.qdiff_plan_delete
    delete_plan.restype, delete_plan.argtypes = None, [ctypes.c_int64]
    return delete_plan


def _set_of(kernels: Loaded) -> _Library:
    found = kernels.handle.qdiff_library
    found.restype = ctypes.POINTER(_Library)
    described: _Library = found().contents
    return described


def _version_of(operators: Loaded) -> int:
    found = operators.handle.qdiff_version
    found.restype = ctypes.c_uint64
    return int(found())
