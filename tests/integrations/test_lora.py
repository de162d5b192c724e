"""A LoRA in a file, loaded by the pipeline beside quantized layers, as beside float ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from qdiff_fx.evaluation import sqnr_db

PLACES = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def lora_folder(float_pipeline: Any, tmp_path: Path) -> Path:
    """A random one of every attention layer, saved by diffusers."""
    torch.manual_seed(0)
    unet = float_pipeline.unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=1, target_modules=PLACES, init_lora_weights=False))
    type(float_pipeline).save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet))
    unet.delete_adapters("default")
    return tmp_path


def drawn(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    found: torch.Tensor = pipe("a fish", num_inference_steps=2, generator=generator, output_type="latent").images
    return found


def test_pipelines_load_it_and_the_network_changes_it(
    float_pipeline: Any, quantized_pipeline: Any, lora_folder: Path
) -> None:
    pipe = copy.copy(quantized_pipeline)
    pipe.unet = copy.deepcopy(quantized_pipeline.unet)
    before = drawn(pipe)
    alone = sqnr_db(drawn(float_pipeline), before)
    for each in (float_pipeline, pipe):
        each.load_lora_weights(lora_folder, adapter_name="style")
    assert pipe.unet.active_adapters() == ["style"]
    for weight in (0.5, 1.0):
        for each in (float_pipeline, pipe):
            each.unet.set_adapters(["style"], [weight])
        expected = drawn(float_pipeline)
        kept = sqnr_db(expected, drawn(pipe))
        assert kept > alone - 3
        assert kept > sqnr_db(expected, before) + weight
    pipe.unet.disable_lora()
    assert torch.equal(drawn(pipe), before)
