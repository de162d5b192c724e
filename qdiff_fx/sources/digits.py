"""The bundled model."""

from __future__ import annotations

from typing import Any

import torch

from qdiff_fx.sources.base import Source
from qdiff_fx.sources.request import SampleRequest

DIGITS = "digits"


class DigitsSource(Source):
    """Handwritten digits with guidance: image number ``i`` shows the digit ``i mod 10``."""

    def __init__(self) -> None:
        from qdiff_fx.bundled.digits import load_digits_pipeline  # brings all of diffusers

        super().__init__(DIGITS, load_digits_pipeline())

    def labels(self, request: SampleRequest) -> torch.Tensor:
        return torch.tensor([number % 10 for number in request.numbers])

    def subjects(self, request: SampleRequest) -> dict[str, Any]:
        return {"labels": self.labels(request)}
