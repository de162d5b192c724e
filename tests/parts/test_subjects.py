"""What is drawn: lists and tensors have an item for each image, in turn; all else is for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting
from whole import image, psnr, tiny_pipeline

from qdiff_fx import QuantizedUNet
from qdiff_fx.errors import ConfigError
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.sources.subjects import in_turn
from tests.pipelines.parts import picture, ready


def test_items_are_taken_in_turn() -> None:
    given = {
        "prompt": ["a", "b", "c"],
        "image": [["x", "y"], ["z", "w"], ["u", "v"]],
        "prompt_embeds": torch.arange(6.0).reshape(3, 2),
        "mask": np.arange(6).reshape(3, 2),
        "strength": 0.5,
        "size": (32, 64),
        "negative_prompt": "d",
        "controlnet_conditioning_scale": [0.5, 1.0],
    }
    found = in_turn(given, range(2, 6))
    assert found["prompt"] == ["c", "a", "b", "c"]
    assert found["image"][:2] == [["u", "v"], ["x", "y"]]
    assert found["prompt_embeds"].tolist() == [[4, 5], [0, 1], [2, 3], [4, 5]]
    assert found["mask"].tolist() == [[4, 5], [0, 1], [2, 3], [4, 5]]
    for name in ("strength", "size", "negative_prompt", "controlnet_conditioning_scale"):
        assert found[name] == given[name]


def test_of_a_source() -> None:
    pipe = tiny_pipeline()
    request = SampleRequest(3, 1)
    both = Source("", pipe, ["a", "b"], {"guidance_scale": 3.0, "negative_prompt": ["c", "d"]})
    assert both.subjects(request) == {
        "prompt": ["a", "b", "a"],
        "guidance_scale": 3.0,
        "negative_prompt": ["c", "d", "c"],
    }
    embedded = Source("", pipe, (), {"prompt_embeds": torch.ones(2, 24, 32)}).subjects(request)
    assert list(embedded) == ["prompt_embeds"]
    assert len(Source("", pipe, ["a"], {"negative_prompt": ["c", "d"]}).subjects(request)["prompt"]) == 3
    with pytest.raises(ConfigError, match="there are 3 of prompt, 2 of negative_prompt"):
        Source("", pipe, ["a", "b", "c"], {"negative_prompt": ["c", "d"]})
    with pytest.raises(ConfigError, match="there are 0 of negative_prompt"):
        Source("", pipe, (), {"negative_prompt": []})


def test_what_is_drawn_is_what_networks_are_calibrated_on(few: Callable[..., Any]) -> None:
    pipe, seen = tiny_pipeline(), []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    few(pipe, data={"prompt": "a fish", "guidance_scale": 1.0}, parts="vae")
    assert set(seen) == {1, 2}  # without another half


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (AutoPipelineForImage2Image, {"strength": 0.6}),
        (AutoPipelineForInpainting, {"mask_image": [picture(), picture()], "height": 32, "width": 32}),
    ],
)
def test_pipelines_that_begin_with_a_picture(few: Callable[..., Any], kind: Any, more: dict[str, Any]) -> None:
    drawn = {"prompt": ["a fish", "two birds"], "image": [picture(), picture().rotate(90)]} | more
    floats, pipe = (ready(kind.from_pipe(tiny_pipeline())) for _ in range(2))
    few(pipe, data=drawn, steps=4, parts="unet")
    assert isinstance(pipe.unet, QuantizedUNet)
    one = {name: value[0] if isinstance(value, list) else value for name, value in drawn.items()}
    assert psnr(image(floats, **one, num_inference_steps=4), image(pipe, **one, num_inference_steps=4)) > 25
