"""Pipelines of many kinds: which parts are found, heard and captured."""

from __future__ import annotations

from typing import Any

import pytest

from qdiff_fx.config import QDiffConfig
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.parts import OtherParts, wanted_parts
from tests.pipelines import images, stages
from tests.pipelines.parts import picture

PARTS = {
    "StableDiffusionPipeline": ["vae.decoder", "text_encoder"],
    "StableDiffusionControlNetPipeline": ["controlnet", "vae.decoder", "text_encoder"],
    "StableDiffusionPAGPipeline": ["vae.decoder", "text_encoder"],
    "LatentConsistencyModelPipeline": ["vae.decoder", "text_encoder"],
    "StableDiffusionXLPipeline": ["vae.decoder", "text_encoder", "text_encoder_2"],
    "DDIMPipeline": [],
    "KandinskyV22PriorPipeline": ["text_encoder"],
    "WuerstchenPriorPipeline": ["text_encoder"],
    "StableCascadePriorPipeline": ["text_encoder"],
}
LINES: dict[str, Any] = {line.name: line for line in (*images.LINES, *stages.LINES)}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_all_parts_are_captured(name: str) -> None:
    pipe = LINES[name].build()
    pipe.set_progress_bar_config(disable=True)
    drawn = {"image": picture()} if "controlnet" in PARTS[name] else {}
    source = Source("", pipe, ["a fish"], drawn)
    others = OtherParts(source, Job(QDiffConfig(), SampleRequest(2, 2), parts=wanted_parts(None)[1]))
    assert others.example()
    others.prepare(progress=False)
    assert not others.left
    names = {phase.name.partition(":")[0] for phase in others.phases(2, 1)}
    assert names == set(PARTS[name])
