"""The engines of torch.ao."""

from qdiff_fx.backends.torch_ao.backend import TorchAOBackend

__all__ = ["TorchAOBackend"]
