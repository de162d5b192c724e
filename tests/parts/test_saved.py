"""A saved pipeline with all its parts: the same images anywhere, and data, whoever it is from."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from whole import STEPS, image, psnr, tiny_decoder, tiny_pipeline

import qdiff_fx
from qdiff_fx import QuantizedUNet, load_qdiff
from qdiff_fx.cli import app
from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.networks.autoencoder import QuantizedAutoencoderKL, QuantizedAutoencoderTiny
from qdiff_fx.sources import SampleRequest, SourceError
from qdiff_fx.sources.pipeline import load_saved_pipeline
from qdiff_fx.storage.sealed import file_digest

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change(file: Path, what: Change) -> None:
    data = json.loads(file.read_text())
    what(data)
    file.write_text(json.dumps(data))


def test_a_fresh_process_draws_the_same_to_the_bit(quantized_pipeline: Any, saved: Path, tmp_path: Path) -> None:
    code = f"""
        import sys, torch, numpy, qdiff_fx
        from diffusers import DiffusionPipeline
        pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
        seed = torch.Generator().manual_seed(3)
        numpy.save(sys.argv[2], pipe("a fish", generator=seed, num_inference_steps={STEPS}, output_type="np").images)
        """
    drawn = tmp_path / "drawn.npy"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), saved, drawn], check=True, capture_output=True)
    assert np.array_equal(np.load(drawn), image(quantized_pipeline))


def test_what_the_folder_says(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["vae"] == ["qdiff_fx", "QuantizedAutoencoderKL"]
    assert index["text_encoder"] == ["qdiff_fx", "QuantizedUNet"]
    described = json.loads((saved / "vae" / "config.json").read_text())
    assert described["_class_name"] == "AutoencoderKL"
    assert described["quantized"]["decoder"]["weight_bits"] == 8
    floats = load_file(saved / "vae" / "float.qdiff" / "weights.safetensors")
    assert not [name for name in floats if name.startswith("decoder.")]
    assert not list(saved.rglob("diffusion_pytorch_model*"))


def test_it_is_saved_again_where_it_was_loaded_from(quantized_pipeline: Any, copy: Path) -> None:
    DiffusionPipeline.from_pretrained(copy).save_pretrained(copy)
    assert np.array_equal(image(DiffusionPipeline.from_pretrained(copy)), image(quantized_pipeline))


def test_parts_are_loaded_by_themselves(saved: Path, quantized_pipeline: Any) -> None:
    vae = QuantizedAutoencoderKL.from_pretrained(saved, subfolder="vae", torch_dtype=torch.float16)
    assert {vae.dtype, vae.post_quant_conv.weight.dtype, vae.encoder.conv_in.weight.dtype} == {torch.float16}
    decoder = load_qdiff(saved / "vae" / "decoder.qdiff")
    latents = torch.ones(1, 4, 8, 8)
    assert torch.equal(decoder(latents), quantized_pipeline.vae.decoder(latents))
    with pytest.raises(ConfigError, match="quantized already"):
        QuantizedAutoencoderKL.from_pretrained(saved / "vae", quantization_config=object())
    with pytest.raises(ConfigError, match="device_map: it cannot be put on 'cuda'"):
        QuantizedAutoencoderKL.from_pretrained(saved / "vae", device_map={"": "cuda"})
    for twin in (deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        half = latents.half()
        assert torch.equal(twin.decode(half).sample, vae.decode(half).sample)
    with pytest.raises(ArtifactError, match="it is the folder of a pipeline.*Name one in it: .*unet"):
        load_qdiff(saved)
    with pytest.raises(ArtifactError, match="it holds a quantized AutoencoderKL, not a AutoencoderTiny"):
        QuantizedAutoencoderTiny.from_pretrained(saved / "vae")


def test_parts_are_given_to_a_float_pipeline(saved: Path, tmp_path: Path, quantized_pipeline: Any) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    networks = {name: load_qdiff(saved, subfolder=name) for name in ("unet", "text_encoder")}
    vae = QuantizedAutoencoderKL.from_pretrained(saved, subfolder="vae")
    pipe = DiffusionPipeline.from_pretrained(tmp_path, vae=vae, **networks)
    assert np.array_equal(image(pipe), image(quantized_pipeline))


def test_the_tiny_decoder_with_its_encoder(tmp_path: Path) -> None:
    pipe = tiny_pipeline(vae=tiny_decoder())
    quiet = {"steps": 2, "budget": None, "progress": False}
    qdiff_fx.quantize(pipe, data=["a fish"], parts="vae,encoder", **quiet)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.vae, QuantizedAutoencoderTiny)
    assert np.array_equal(image(loaded), image(pipe))
    picture = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.vae.encode(picture).latents, pipe.vae.encode(picture).latents)
    assert load_file(tmp_path / "vae" / "float.qdiff" / "weights.safetensors") == {}


def test_a_folder_of_something_else_is_not_written_over(quantized_pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"float")
    with pytest.raises(ArtifactError, match="it holds 'diffusion_pytorch_model.safetensors'"):
        quantized_pipeline.vae.save_pretrained(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["diffusion_pytorch_model.safetensors"]


def _set(name: str, value: Any) -> Change:
    return lambda data: data.update({name: value})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (_set("_class_name", "AutoencoderKLWan"), "_class_name.*one of 'AutoencoderKL', 'AutoencoderTiny'"),
        (_set("_class_name", "os.system"), "one of 'AutoencoderKL'"),
        (_set("block_out_channels", [1 << 40]), "block_out_channels is 1099511627776"),
        (_set("block_out_channels", [8] * 65), "block_out_channels has 65 items"),
        (_set("layers_per_block", -1), "layers_per_block is -1"),
        (_set("up_block_types", {"a": 1}), "up_block_types is an object"),
        (_set("up_block_types", ["__import__"]), "there is no AutoencoderKL of this configuration"),
        (_set("act_fn", 3), "there is no AutoencoderKL of this configuration"),
        (_set("use_quant_conv", False), "'quant_conv.bias' is no weight of it"),
        (_set("float_sha256", 3), "float_sha256"),
        (lambda data: data.pop("float_sha256"), ""),
        (_set("quantized", {}), "it names no quantized network"),
        (_set("quantized", {"encoder": {}, "decoder": {}}), "encoder.qdiff"),
        (_set("norm_num_groups", 2), ""),
    ],
)
def test_a_configuration_from_somebody_else(copy: Path, what: Change, message: str) -> None:
    change(copy / "vae" / "config.json", what)
    if not message:
        QuantizedAutoencoderKL.from_pretrained(copy / "vae")
        return
    with pytest.raises(ArtifactError, match=message):
        QuantizedAutoencoderKL.from_pretrained(copy / "vae")


def test_weights_from_somebody_else(copy: Path) -> None:
    file = copy / "vae" / "float.qdiff" / "weights.safetensors"
    weights = load_file(file)
    for changed, message in (
        ({**weights, "decoder.conv_in.weight": torch.ones(1)}, "'decoder.conv_in.weight' is no weight of it"),
        ({name: each for name, each in weights.items() if "quant" not in name}, "is missing"),
        ({**weights, "quant_conv.bias": torch.ones(3)}, r"bias is torch.float32 \[3\], not \[8\] of floats"),
        ({**weights, "quant_conv.bias": torch.ones(8, dtype=torch.int64)}, "bias is torch.int64"),
    ):
        save_file(changed, file)
        change(copy / "vae" / "config.json", _set("float_sha256", file_digest(file)))
        with pytest.raises(ArtifactError, match=message):
            QuantizedAutoencoderKL.from_pretrained(copy / "vae")
    file.unlink()
    with pytest.raises(ArtifactError, match="vae.*float.qdiff/weights.safetensors is missing"):
        QuantizedAutoencoderKL.from_pretrained(copy / "vae")
    with pytest.raises(ArtifactError, match="there is no config.json"):
        QuantizedAutoencoderKL.from_pretrained(copy / "scheduler")


@pytest.mark.parametrize("part", ["decoder.qdiff", "float.qdiff"])
def test_what_is_damaged_is_named(copy: Path, part: str) -> None:
    weights = copy / "vae" / part / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=rf"{part}.*weights.safetensors is damaged"):
        load_saved_pipeline(copy)


class TestDrawing:
    def test_it_draws_what_the_pipeline_draws(self, saved: Path) -> None:
        origin, request = load_saved_pipeline(saved, ["a fish"]), SampleRequest(1, STEPS, seed=5)
        drawn = origin.sample(origin.unet, request)
        expected = origin.pipe(
            "a fish", num_inference_steps=STEPS, generator=request.generators(), output_type="np"
        ).images
        assert torch.equal(drawn, torch.from_numpy(expected).permute(0, 3, 1, 2) * 2 - 1)
        assert origin.label == "W8A8"

    def test_another_backend(self, saved: Path, quantized_pipeline: Any) -> None:
        origin = load_saved_pipeline(saved, ["a fish"], "reference")
        networks = (origin.unet, origin.pipe.vae.decoder, origin.pipe.text_encoder)
        assert {network.backend for network in networks} == {"reference"}
        assert isinstance(origin.pipe.vae, QuantizedAutoencoderKL)
        assert psnr(image(quantized_pipeline), image(origin.pipe)) > 30

    def test_it_is_compared_with_what_is_named_only(self, saved: Path, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["sample", str(saved), "--compare", "--out", str(tmp_path / "x.png")])
        assert done.exit_code != 0
        assert "--compare: a folder of quantized networks has no float one. Give --source" in done.stderr

    def test_nothing_that_it_names_is_imported(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (copy / "evil.py").write_text("raise SystemExit('executed')")
        monkeypatch.syspath_prepend(str(copy))
        change(copy / "model_index.json", _set("vae", ["evil", "AutoencoderKL"]))
        with pytest.raises(SourceError, match="its vae is of 'evil', which is not imported"):
            load_saved_pipeline(copy)

    def test_code_beside_it_is_not_executed(self, copy: Path) -> None:
        (copy / "vae" / "diffusers.py").write_text("raise SystemExit('executed')")
        change(copy / "model_index.json", _set("vae", ["diffusers", "AutoencoderKL"]))
        with pytest.raises(ArtifactError, match="vae brings code of its own"):
            load_saved_pipeline(copy)
        change(copy / "model_index.json", _set("_class_name", ["pipeline", "Own"]))
        with pytest.raises(ArtifactError, match="brings code of its own"):
            load_saved_pipeline(copy)

    def test_nothing_is_unpickled(self, tmp_path: Path, saved: Path) -> None:
        folder = Path(shutil.copytree(saved, tmp_path / "pickled"))
        tiny_pipeline().vae.save_pretrained(tmp_path / "float", safe_serialization=False)
        shutil.rmtree(folder / "vae")
        shutil.copytree(tmp_path / "float", folder / "vae")
        change(folder / "model_index.json", _set("vae", ["diffusers", "AutoencoderKL"]))
        with pytest.raises(SourceError, match="cannot be loaded"):
            load_saved_pipeline(folder)

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="there is no model_index.json"):
            load_saved_pipeline(tmp_path)
        (tmp_path / "model_index.json").write_text("[]")
        with pytest.raises(ArtifactError, match="no index of a pipeline"):
            load_saved_pipeline(tmp_path)


def test_quantized_networks_are_the_ones_that_were_saved(saved: Path, quantized_pipeline: Any) -> None:
    loaded = DiffusionPipeline.from_pretrained(saved)
    assert isinstance(loaded.text_encoder, QuantizedUNet)
    ids = torch.randint(0, 50, (2, 24))
    found, expected = loaded.text_encoder(ids)[0], quantized_pipeline.text_encoder(ids)[0]
    assert torch.equal(found, expected)
