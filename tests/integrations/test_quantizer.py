"""`from_pretrained(quantization_config=...)`, of pipelines and of models."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, PipelineQuantizationConfig, UNet2DConditionModel

from qdiff_fx import QDiffConfig, QuantizedUNet
from qdiff_fx.config import QuantMethod
from qdiff_fx.errors import ArtifactError, ConfigError, QDiffError
from qdiff_fx.integrations.quantizer import QDiffQuantizer, become, pipeline_around
from qdiff_fx.storage.pipeline_index import check_is_data
from qdiff_fx.workflow import enough, one_call

pytestmark = pytest.mark.usefixtures("quickly")
CONFIG = QDiffConfig(weight_bits=4, timestep_bins=2)
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="diffusers loads nothing with a quantization_config without accelerate",
)


@pytest.fixture
def saved(float_pipeline: Any, tmp_path: Path) -> Path:
    float_pipeline.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trajectories of two steps."""
    monkeypatch.setattr(enough, "usual_trajectories", lambda steps: 2)
    monkeypatch.setattr(one_call, "quantize", partial(one_call.quantize, budget=None, steps=2, progress=False))


@needs_accelerate
@pytest.mark.usefixtures("short")
def test_a_pipeline_is_quantized_while_it_is_loaded(saved: Path, tmp_path: Path) -> None:
    asked = PipelineQuantizationConfig(quant_mapping={"unet": CONFIG})
    pipe = DiffusionPipeline.from_pretrained(saved, quantization_config=asked)
    assert type(pipe.unet) is QuantizedUNet
    assert pipe.unet.qconfig.weight_bits == 4
    images = pipe("a fish", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    pipe.save_pretrained(tmp_path / "quantized")
    again = DiffusionPipeline.from_pretrained(tmp_path / "quantized")
    drawn = again("a fish", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert (images == drawn).all()


@needs_accelerate
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "given", [CONFIG, pytest.param(CONFIG.to_dict(), marks=pytest.mark.slow)], ids=["config", "dictionary"]
)
def test_a_model_with_its_pipeline_around_it_too(saved: Path, given: Any) -> None:
    unet = UNet2DConditionModel.from_pretrained(saved, subfolder="unet", quantization_config=given)
    assert type(unet) is QuantizedUNet
    assert unet.config.cross_attention_dim == 32


@needs_accelerate
def test_a_model_alone_and_another_component_are_refused(float_pipeline: Any, saved: Path, tmp_path: Path) -> None:
    float_pipeline.unet.save_pretrained(tmp_path / "alone" / "unet")
    with pytest.raises(ArtifactError, match="no pipeline around it.*PipelineQuantizationConfig"):
        UNet2DConditionModel.from_pretrained(tmp_path / "alone" / "unet", quantization_config=CONFIG)
    with pytest.raises(ConfigError, match="only the network that denoises is quantized, not a pipeline's vae"):
        AutoencoderKL.from_pretrained(saved, subfolder="vae", quantization_config=CONFIG)


def test_a_quantized_component_is_not_loaded_as_a_float_model(quantized_pipeline: Any, tmp_path: Path) -> None:
    quantized_pipeline.unet.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="it holds a network of qdiff_fx.*load_qdiff"):
        UNet2DConditionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_diffusers_knows_the_configuration_as_its_own(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    from diffusers.quantizers.auto import DiffusersAutoQuantizer

    assert DiffusersAutoQuantizer.from_dict(CONFIG.to_dict()) == CONFIG
    quantizer = DiffusersAutoQuantizer.from_config(CONFIG, pre_quantized=False)
    assert isinstance(quantizer, QDiffQuantizer)
    assert CONFIG.quant_method is QuantMethod.QDIFF
    if not there:
        with pytest.raises(QDiffError, match="diffusers needs accelerate.*pip install 'qdiff_fx.pipelines.'"):
            quantizer.validate_environment()
        return
    with pytest.raises(ConfigError, match="device_map: it cannot be put on 'cuda:0'"):
        quantizer.validate_environment(torch_dtype=None, device_map={"": "cuda:0"})
    quantizer.validate_environment(device_map={"": torch.device("cpu")})
    with pytest.raises(ConfigError, match="unknown fields"):
        DiffusersAutoQuantizer.from_dict({"quant_method": "qdiff_fx", "run": "code"})


def test_the_pipeline_around_it_is_found_with_the_network_in_it(float_pipeline: Any, saved: Path) -> None:
    pipe = pipeline_around(float_pipeline.unet, saved / "unet")
    assert pipe.unet is float_pipeline.unet
    assert type(pipe) is type(float_pipeline)


@pytest.mark.parametrize("where", ["pipeline", "component"])
def test_code_beside_it_is_not_executed(float_pipeline: Any, saved: Path, where: str) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    ran = saved / "ran"
    code = f"open({str(ran)!r}, 'w')\n"
    if where == "pipeline":
        index["_class_name"] = ["custom", "Pipeline"]
        (saved / "custom.py").write_text(code)
    else:
        index["vae"] = ["custom", "Vae"]
        (saved / "vae" / "custom.py").write_text(code)
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="brings code of its own, which is not executed"):
        pipeline_around(float_pipeline.unet, saved / "unet")
    assert not ran.exists()
    (saved / "model_index.json").write_text("[]")
    with pytest.raises(ArtifactError, match="it is no index of a pipeline"):
        check_is_data(saved)


def test_whoever_holds_the_network_holds_the_quantized_one(float_pipeline: Any, quantized_pipeline: Any) -> None:
    network = float_pipeline.unet
    inputs = {"sample": torch.ones(1, 4, 16, 16), "timestep": 1, "encoder_hidden_states": torch.ones(1, 24, 32)}
    become(network, quantized_pipeline.unet)
    assert type(network) is QuantizedUNet
    assert torch.equal(network(**inputs).sample, quantized_pipeline.unet(**inputs).sample)
