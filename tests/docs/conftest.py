"""What blocks of the docs are given: small pipelines and networks of random weights, prompts, a hub."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import qdiff_fx
from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff
from tests.integrations.example_pipeline import PROMPTS, tiny_pipeline, with_quantized_unet
from tests.integrations.fake_hub import FakeHub, serving, talk_to
from tests.tiny_graphs import Shortcut


@pytest.fixture
def prompts() -> list[str]:
    return PROMPTS


@pytest.fixture
def prompt() -> str:
    return PROMPTS[0]


@pytest.fixture
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quantized is calibrated on two trajectories of two steps, whatever the budget would allow."""
    monkeypatch.setattr("qdiff_fx.workflow.enough.MOST_TRAJECTORIES", 2)
    monkeypatch.setitem(qdiff_fx.quantize.__kwdefaults__, "steps", 2)


@pytest.fixture(scope="session")
def _made_once() -> Any:
    return tiny_pipeline()


@pytest.fixture
def float_pipe(_made_once: Any) -> Any:
    return copy.deepcopy(_made_once)


@pytest.fixture
def another_pipe(_made_once: Any) -> Any:
    return copy.deepcopy(_made_once)


@pytest.fixture(scope="session")
def pipeline_at(_made_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    _made_once.save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline_folder(pipeline_at: Path, tmp_path: Path) -> None:
    """At path/to/pipeline."""
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/pipeline").symlink_to(pipeline_at)


@pytest.fixture(scope="session")
def _quantized_once(_made_once: Any) -> Any:
    return with_quantized_unet(copy.deepcopy(_made_once))


@pytest.fixture
def quantized_pipe(_quantized_once: Any) -> Any:
    return copy.deepcopy(_quantized_once)


@pytest.fixture
def image_pipe(float_pipe: Any) -> Any:
    """From an image and a prompt."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**float_pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pairs() -> list[tuple[str, torch.Tensor]]:
    """Prompts, and images in [0, 1]."""
    return [(text, torch.rand(1, 3, 16, 16)) for text in PROMPTS]


@pytest.fixture
def lora_file(float_pipe: Any, tmp_path: Path) -> None:
    """At lora.safetensors: a random one of every attention layer."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    float_pipe.unet.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    weights = get_peft_model_state_dict(float_pipe.unet)
    type(float_pipe).save_lora_weights(tmp_path, unet_lora_layers=weights, weight_name="lora.safetensors")


class Hub(FakeHub):
    def last(self, repository: str) -> str:
        """The name of its last commit."""
        found = self._revision(repository, "main")
        assert found is not None
        return found[0]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    fake = Hub()
    with serving(fake):
        talk_to(fake, monkeypatch, tmp_path / "cache")
        yield fake


def _inputs(timestep: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 3, 8, 8), "t": torch.full((4,), timestep)}


@pytest.fixture
def data() -> list[dict[str, torch.Tensor]]:
    """Of a network without a pipeline."""
    return [_inputs(timestep) for timestep in (900, 480, 20)]


@pytest.fixture
def prepared(data: list[dict[str, torch.Tensor]]) -> Any:
    return prepare_qdiff(Shortcut().eval(), QDiffConfig(weight_bits=4), data[0])


@pytest.fixture
def small_pipe(prepared: Any, data: list[dict[str, torch.Tensor]]) -> Any:
    """As much of a pipeline as has a quantized network."""
    calibrate(prepared, data, progress=False)
    return SimpleNamespace(unet=convert_qdiff(prepared, "reference"))
