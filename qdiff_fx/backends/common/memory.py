"""Giving memory back that nobody uses any more."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_unused() -> None:
    """Collect cyclic garbage, graphs above all, and hand free memory back to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Hand free memory back to the system where the C library can; by itself glibc keeps most of it."""
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)
