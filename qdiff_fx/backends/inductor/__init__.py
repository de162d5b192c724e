"""oneDNN's integer kernels under `torch.compile`."""

from qdiff_fx.backends.inductor.backend import InductorBackend

__all__ = ["InductorBackend"]
