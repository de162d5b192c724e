"""A pipeline that is drawn with as it is: its networks may be quantized already."""

from __future__ import annotations

from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.sources.base import Source
from qdiff_fx.sources.parts import all_quantized, put_quantized


class DrawingSource(Source):
    """A source of images, and of calls of other parts; its own network is not going to be quantized."""

    def _check(self) -> None:
        pass

    def run_on(self, backend: str) -> None:
        """Have all quantized networks of the pipeline run on this backend.

        Raises:
            BackendError: it is unknown or cannot run on this machine.
        """
        for name, network in all_quantized(self.pipe).items():
            if network.backend != backend:
                put_quantized(self.pipe, name, network.with_backend(backend))
        self.unet = getattr(self.pipe, self.name)

    @property
    def label(self) -> str:
        """How the network that denoises is quantized."""
        if not isinstance(self.unet, QuantizedUNet):
            return "FP"
        return f"W{self.unet.qconfig.weight_bits}A{self.unet.qconfig.act_bits}"
