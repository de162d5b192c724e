"""Integer kernels called one after the other, nothing compiled when a network is loaded."""

from qdiff_fx.backends.native.backend import NativeBackend

__all__ = ["NativeBackend"]
