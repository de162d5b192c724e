"""Quantized networks for other runtimes: as ONNX, or as a program of `torch.export`."""

from qdiff_fx.export.export import export_qdiff

__all__ = ["export_qdiff"]
