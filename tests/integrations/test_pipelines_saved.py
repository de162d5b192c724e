"""`pipe.save_pretrained` and `DiffusionPipeline.from_pretrained`, with nothing beside them but `import qdiff_fx`."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from qdiff_fx import QuantizedUNet, load_qdiff
from qdiff_fx.errors import ArtifactError, ConfigError

DRAW = {"num_inference_steps": 3, "output_type": "np"}


def image(pipe: Any) -> np.ndarray:
    found: np.ndarray = pipe("a fish", generator=torch.Generator().manual_seed(3), **DRAW).images
    return found


@pytest.fixture(scope="module")
def saved(quantized_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    quantized_pipeline.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import qdiff_fx\nfrom diffusers import DiffusionPipeline",
        "from diffusers import DiffusionPipeline\nDiffusionPipeline\nimport qdiff_fx",
    ],
    ids=["first", "last"],
)
def test_a_fresh_process_draws_the_same_to_the_bit(
    quantized_pipeline: Any, saved: Path, tmp_path: Path, imports: str
) -> None:
    script = f"""
        import sys, torch, numpy
        pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
        drawn = pipe("a fish", generator=torch.Generator().manual_seed(3), **{DRAW!r}).images
        numpy.save(sys.argv[2], drawn)
        """
    drawn = tmp_path / "drawn.npy"
    code = imports + "\n" + textwrap.dedent(script)
    subprocess.run([sys.executable, "-c", code, saved, drawn], check=True, capture_output=True)
    assert np.array_equal(np.load(drawn), image(quantized_pipeline))


def test_the_index_names_class_and_package(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["unet"] == ["qdiff_fx", "QuantizedUNet"]
    description = json.loads((saved / "unet" / "config.json").read_text())
    assert description["quantization_config"]["quant_method"] == "qdiff_fx"
    assert description["quantization_config"]["weight_bits"] == 4


def test_it_is_saved_again_where_it_was_loaded_from(quantized_pipeline: Any, tmp_path: Path) -> None:
    quantized_pipeline.save_pretrained(tmp_path)
    DiffusionPipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert np.array_equal(image(DiffusionPipeline.from_pretrained(tmp_path)), image(quantized_pipeline))


def test_the_network_of_a_pipeline_is_loaded_by_itself(quantized_pipeline: Any, saved: Path) -> None:
    float_free = DiffusionPipeline.from_pretrained(saved, unet=load_qdiff(saved, subfolder="unet"))
    assert np.array_equal(image(float_free), image(quantized_pipeline))
    assert load_qdiff(saved / "unet", "reference").backend == "reference"


def test_weights_that_are_there_already_are_not_mixed_with_it(quantized_pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"float")
    with pytest.raises(ArtifactError, match="it holds 'diffusion_pytorch_model.safetensors'"):
        quantized_pipeline.unet.save_pretrained(tmp_path / "unet")
    assert [each.name for each in (tmp_path / "unet").iterdir()] == ["diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_type_is_what_it_is_called_in(saved: Path, dtype: torch.dtype) -> None:
    assert QuantizedUNet.from_pretrained(saved / "unet", torch_dtype=dtype).dtype == dtype


def test_a_variant_of_the_other_components_makes_no_difference(quantized_pipeline: Any, tmp_path: Path) -> None:
    quantized_pipeline.save_pretrained(tmp_path, variant="fp16")
    pipe = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    assert np.array_equal(image(pipe), image(quantized_pipeline))


def test_a_type_for_the_whole_pipeline(quantized_pipeline: Any, saved: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(saved, torch_dtype=torch.float16)
    assert pipe.unet.dtype == torch.float16
    expected, drawn = (torch.from_numpy(image(each)).float() for each in (quantized_pipeline, pipe))
    assert 20 * torch.log10(expected.norm() / (expected - drawn).norm()) > 25


def test_it_is_not_quantized_twice(saved: Path) -> None:
    with pytest.raises(ConfigError, match="quantized already"):
        QuantizedUNet.from_pretrained(saved / "unet", quantization_config=object())


@pytest.mark.parametrize("name", ["PreparedUNet", "load_qdiff", "__builtins__", "integrations", "importlib"])
def test_an_index_names_no_other_class_of_the_package(saved: Path, tmp_path: Path, name: str) -> None:
    """A folder from somebody else: what it names is looked for among quantized networks only."""
    index = json.loads((saved / "model_index.json").read_text()) | {"unet": ["qdiff_fx", name]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for each in ("text_encoder", "tokenizer", "scheduler", "vae", "unet"):
        (tmp_path / each).symlink_to(saved / each)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_a_damaged_network_is_named(quantized_pipeline: Any, tmp_path: Path) -> None:
    quantized_pipeline.save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "network.qdiff" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="weights.safetensors is damaged"):
        DiffusionPipeline.from_pretrained(tmp_path)
