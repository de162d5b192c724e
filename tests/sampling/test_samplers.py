"""How a pipeline is called while its network is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qdiff_fx.sampling.samplers import PipelineSampler


class Pipeline:
    """Keeps what it was called with."""

    def __init__(self, vae: object):
        self.vae, self.unet, self.scheduler = vae, nn.Linear(1, 1), None
        self.given: dict[str, Any] = {}


class OfImages(Pipeline):
    def __call__(self, num_inference_steps: int, generator: Any = None, output_type: str = "pil") -> tuple[list[int]]:
        self.given = {"output_type": output_type}
        return ([1],)


class OfDepths(Pipeline):
    """As Marigold's, which know no latents."""

    def __call__(self, num_inference_steps: int, generator: Any = None, output_type: str = "np") -> tuple[list[int]]:
        self.given = {"output_type": output_type}
        return ([1],)


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [(OfImages("vae"), "latent"), (OfImages(None), "pil"), (OfDepths("vae"), "np")],
)
def test_the_decoder_is_skipped_where_that_can_be_asked_for(pipeline: Pipeline, expected: str) -> None:
    PipelineSampler(pipeline, None, 2, None).sample(1, {}, torch.Generator())
    assert pipeline.given["output_type"] == expected
