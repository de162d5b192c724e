"""From an nn.Module to a flat torch.fx graph that remembers which module made each node."""

from qdiff_fx.capture.network import CapturedNetwork
from qdiff_fx.capture.tracing import CapturedGraph, capture

__all__ = ["CapturedGraph", "CapturedNetwork", "capture"]
