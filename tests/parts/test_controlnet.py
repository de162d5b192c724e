"""A ControlNet is quantized as the UNet is, on the steps it takes beside it; what scales its results stays outside."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from controlled import DRAWN, PICTURE, controlled, small_unet, step
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.controlnets.controlnet import ControlNetOutput
from PIL import Image
from quickly import quickly
from typer.testing import CliRunner
from whole import QUIET, STEPS, image, psnr, sqnr, tiny_pipeline

import qdiff_fx
from qdiff_fx import QDiffConfig, QuantizedUNet, load_qdiff
from qdiff_fx.cli import app
from qdiff_fx.config import Rule
from qdiff_fx.errors import ArtifactError, ConfigError, InputError
from qdiff_fx.networks.controlnet import QuantizedControlNetModel, QuantizedMultiControlNetModel
from qdiff_fx.sources import DrawingSource, SampleRequest, Source, SourceError
from qdiff_fx.sources.parts import all_quantized
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.parts import OtherParts, wanted_parts
from tests.pipelines.images import controlled_xl, controlnet
from tests.pipelines.parts import ready

Few = Callable[..., Any]
CONFIG = QDiffConfig(weight_bits=6, weight_rounding="nearest", timestep_bins=2)
SCALED = [
    {"controlnet_conditioning_scale": 0.4},
    {"guess_mode": True},
    {"control_guidance_start": 0.2, "control_guidance_end": 0.7, "controlnet_conditioning_scale": 2.0},
]


@pytest.fixture(scope="session")
def quantized() -> Any:
    """Its ControlNet alone. Not to be changed."""
    with quickly(), pytest.MonkeyPatch.context() as patched:
        patched.setattr("qdiff_fx.workflow.enough.usual_trajectories", lambda steps: 2)
        return qdiff_fx.quantize(controlled(), CONFIG, DRAWN, parts="controlnet", **QUIET)


@pytest.fixture(scope="session")
def saved_controlled(quantized: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlled") / "pipeline"
    quantized.save_pretrained(folder)
    return folder


def test_it_has_the_bits_of_the_unet_and_scales_of_each_timestep(quantized: Any) -> None:
    net = quantized.controlnet
    assert isinstance(net, QuantizedControlNetModel)
    assert isinstance(net, ControlNetModel)
    assert type(quantized.unet).__name__ == "UNet2DConditionModel"
    assert net.network.signature.timestep is not None
    assert net.network.qconfig.weight_bits == CONFIG.weight_bits
    assert net.network.qconfig.act_granularity == "timestep"
    assert net.network.explain().counts[1] == 0
    assert all_quantized(quantized) == {"controlnet": net.network}
    first, second = (
        sqnr(answer(controlled().controlnet, timestep=torch.tensor(t)), answer(net, timestep=torch.tensor(t)))
        for t in (901, 1)
    )
    assert min(first, second) > 20


def answer(net: Any, **changes: Any) -> torch.Tensor:
    """All results of a step."""
    with torch.no_grad():
        down, middle = net(**step() | changes, return_dict=False)
    return torch.cat([each.flatten() for each in (*down, middle)])


def test_it_draws_what_the_float_one_does_however_much_it_weighs(quantized: Any) -> None:
    without = image(quantized, image=PICTURE, controlnet_conditioning_scale=0.0)
    for given in ({}, *SCALED):
        expected, found = image(controlled(), image=PICTURE, **given), image(quantized, image=PICTURE, **given)
        assert psnr(expected, found) > psnr(expected, without) + 12
    assert not np.array_equal(image(controlled(), image=PICTURE), image(quantized, image=PICTURE))


def test_results_are_those_of_a_float_one_and_scaled_as_there(quantized: Any) -> None:
    net, own = quantized.controlnet, controlled().controlnet
    down, middle = net(**step(), return_dict=False)
    assert isinstance(down, list)
    named = net(**step())
    assert isinstance(named, ControlNetOutput)
    assert torch.equal(named.mid_block_res_sample, middle)
    by_place = net(*step().values(), 0.3, return_dict=False)
    assert torch.equal(by_place[1], middle * 0.3)
    with torch.no_grad():
        expected = own(**step(), conditioning_scale=0.7, guess_mode=True)
    found = net(**step(), conditioning_scale=0.7, guess_mode=True)
    for one, other in zip(
        (*expected.down_block_res_samples, expected.mid_block_res_sample),
        (*found.down_block_res_samples, found.mid_block_res_sample),
        strict=True,
    ):
        assert sqnr(one, other) > 20
    assert torch.equal(found.mid_block_res_sample, middle * 0.7)
    named.mid_block_res_sample += 1  # as several are added up
    assert torch.equal(net(**step()).mid_block_res_sample, middle)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conditioning_scale": [1.0, 0.5]}, r"'conditioning_scale': \[1.0, 0.5\] is not one number"),
        ({"conditioning_scale": torch.ones(2)}, "is not one number"),
        ({"condition": 3}, "'condition': the network has no such argument"),
        ({"sample": torch.full((2, 4, 16, 16), torch.nan)}, "'sample': it holds NaN"),
        ({"timestep": 1500}, "timestep 1500"),
        ({"added_cond_kwargs": {"time_ids": torch.zeros(2, 6)}}, "added_cond_kwargs"),
        ({"controlnet_cond": torch.zeros(2, 1, 32, 32)}, "controlnet_cond"),
    ],
)
def test_calls_that_do_not_fit(quantized: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantized.controlnet(**step() | given)


def test_what_is_asked_of_it(quantized: Any) -> None:
    net = quantized.controlnet
    assert (net.dtype, net.device.type) == (torch.float32, "cpu")
    assert net.config.conditioning_channels == 3
    net.set_attention_slice("auto")
    with pytest.raises(AttributeError, match="no 'set_attn_processor': attention is a part of its graph"):
        net.set_attn_processor(None)
    twin = pickle.loads(pickle.dumps(net))
    assert torch.equal(answer(twin), answer(net))
    twin.to(torch.float16)
    half = {name: each.half() if each.is_floating_point() else each for name, each in step().items()}
    assert twin.dtype == torch.float16
    assert answer(twin, **half).dtype == torch.float16
    assert net.dtype == torch.float32


def test_it_comes_back_from_a_folder(quantized: Any, saved_controlled: Path) -> None:
    index = json.loads((saved_controlled / "model_index.json").read_text())
    assert index["controlnet"] == ["qdiff_fx", "QuantizedControlNetModel"]
    assert sorted(each.name for each in (saved_controlled / "controlnet").iterdir()) == ["config.json", "network.qdiff"]
    loaded = DiffusionPipeline.from_pretrained(saved_controlled)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.controlnet, QuantizedControlNetModel)
    assert np.array_equal(image(loaded, image=PICTURE), image(quantized, image=PICTURE))
    alone = load_qdiff(saved_controlled, subfolder="controlnet")
    assert torch.equal(answer(alone), answer(quantized.controlnet))
    half = QuantizedControlNetModel.from_pretrained(saved_controlled / "controlnet", torch_dtype=torch.float16)
    assert half.dtype == torch.float16
    source = DrawingSource("", loaded)
    source.run_on("reference")
    assert loaded.controlnet.network.backend == "reference"
    shown = CliRunner().invoke(app, ["inspect", str(saved_controlled / "controlnet")])
    assert shown.exit_code == 0, shown.output
    assert "controlnet_down_blocks" in shown.output


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_to_the_bit(quantized: Any, saved_controlled: Path, tmp_path: Path) -> None:
    code = f"""
        import sys, torch, numpy, qdiff_fx
        from PIL import Image
        from diffusers import DiffusionPipeline
        pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
        given = dict(image=Image.open(sys.argv[2]), generator=torch.Generator().manual_seed(3))
        drawn = pipe("a fish", num_inference_steps={STEPS}, output_type="np", guess_mode=True, **given).images
        numpy.save(sys.argv[3], drawn)
        """
    picture, drawn = tmp_path / "picture.png", tmp_path / "drawn.npy"
    PICTURE.save(picture)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), saved_controlled, picture, drawn],
        check=True,
        capture_output=True,
    )
    assert np.array_equal(np.load(drawn), image(quantized, image=PICTURE, guess_mode=True))


def test_one_that_is_loaded_by_itself_is_put_into_another_pipeline(
    quantized: Any, saved_controlled: Path, few: Few, tmp_path: Path
) -> None:
    controlled().save_pretrained(tmp_path / "float")
    net = qdiff_fx.QuantizedControlNetModel.from_pretrained(saved_controlled, subfolder="controlnet")
    pipe = ready(StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "float", controlnet=net))
    assert pipe.controlnet is net
    assert np.array_equal(image(pipe, image=PICTURE), image(quantized, image=PICTURE))
    few(pipe, data=DRAWN, parts="vae")  # calibrated on what it draws
    assert pipe.controlnet is net
    assert list(all_quantized(pipe)) == ["vae.decoder", "controlnet"]


def test_it_is_drawn_with_from_the_command_line(saved_controlled: Path, tmp_path: Path) -> None:
    picture, drawn, broken = tmp_path / "picture.png", tmp_path / "drawn.png", tmp_path / "broken.png"
    PICTURE.save(picture)
    broken.write_bytes(b"no picture")
    command = ["sample", str(saved_controlled), "--prompt", "a fish", "--steps", "2", "--out", str(drawn)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0
    assert "StableDiffusionControlNetPipeline draws by image, which nobody gave. Give them: --image FILE" in " ".join(
        refused.stderr.split()
    )
    assert "broken.png: it is no picture" in CliRunner().invoke(app, [*command, "--image", str(broken)]).stderr
    done = CliRunner().invoke(app, [*command, "--image", str(picture), "--image", str(picture)])
    assert done.exit_code == 0, done.output
    assert "controlnet quantized" in done.stderr
    with Image.open(drawn) as sheet:
        assert sheet.width > 2 * PICTURE.width  # one for each picture


@pytest.mark.slow
def test_it_is_quantized_from_the_command_line(tmp_path: Path) -> None:
    picture, folder, out = tmp_path / "picture.png", tmp_path / "float", tmp_path / "quantized"
    PICTURE.save(picture)
    controlled().save_pretrained(folder)
    command = ["quantize", str(folder), "--parts", "controlnet", "--steps", "2", "--samples", "2", "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--image", str(picture), "--json", "-"])
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["parts"]) == ["controlnet"]
    assert "controlnet: 8.00 bits a weight" in done.stderr
    taken = CliRunner().invoke(app, ["quantize", "digits", "--image", str(picture), "--out", str(tmp_path / "x")])
    assert "digits: it takes no pictures. Leave out --image" in " ".join(taken.stderr.split())


def test_what_is_no_controlnet_is_not_loaded_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signature = SimpleNamespace(output={"kind": "tensor"}, parameters=[SimpleNamespace(name="sample")])
    monkeypatch.setattr(QuantizedUNet, "from_pretrained", lambda *_, **__: SimpleNamespace(signature=signature))
    with pytest.raises(ArtifactError, match="it holds a network that is no ControlNet"):
        QuantizedControlNetModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="it is quantized already"):
        QuantizedControlNetModel.from_pretrained(tmp_path, quantization_config=QDiffConfig())
    with pytest.raises(ArtifactError, match="there is no such folder"):
        QuantizedMultiControlNetModel.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a fish"], r"draws by image, which nobody gave.*data=\{\"prompt\": \[...\], \"image\": \[...\]\}"),
        ({"prompt": ["a fish"]}, "draws by image, which nobody gave"),
        ({**DRAWN, "image": [PICTURE] * 3}, "data: there are 2 of prompt, 3 of image"),
        ({**DRAWN, "imgae": PICTURE}, "data: StableDiffusionControlNetPipeline takes no 'imgae'"),
        ({**DRAWN, "num_inference_steps": 3}, "data: num_inference_steps is not what is drawn. Give steps="),
        ({**DRAWN, "prompt": [3]}, "data: they are no prompts"),
    ],
)
def test_what_is_drawn_has_to_be_said(few: Few, data: Any, message: str) -> None:
    pipe = controlled()
    with pytest.raises((ConfigError, SourceError), match=message):
        few(pipe, data=data)
    assert type(pipe.controlnet) is ControlNetModel


def test_pipelines_that_cannot_run_are_refused_even_where_nobody_names_the_part(few: Few) -> None:
    for changes, message in (
        ({"controlnet": controlnet(small_unet(block_out_channels=(8,)))}, r"block_out_channels .*8.*, its unet .*16"),
        (
            {"controlnet": controlnet(small_unet()).half()},
            "its controlnet has type torch.float16, its unet torch.float32",
        ),
    ):
        for named in ({}, {"parts": "controlnet"}, {"parts": "vae,controlnet"}):
            with pytest.raises(ConfigError, match=message):
                few(controlled(**changes), data=DRAWN, **named)


def test_pipelines_without_one(few: Few, float_pipeline: Any) -> None:
    with pytest.raises(ConfigError, match="parts, 'controlnet': StableDiffusionPipeline has no ControlNet"):
        few(float_pipeline, parts="unet,controlnet")
    assert not OtherParts(
        Source("", tiny_pipeline()), Job(CONFIG, SampleRequest(1, 2), parts=wanted_parts(None)[1])
    ).left


def test_another_class_stays_in_float_and_what_is_quantized_is_not_again(few: Few, quantized: Any) -> None:
    class Own(ControlNetModel):
        pass

    pipe = controlled()
    pipe.controlnet.__class__ = Own
    others = OtherParts(Source("", pipe, (), DRAWN), Job(CONFIG, SampleRequest(1, 2), parts=wanted_parts(None)[1]))
    assert others.left == {
        "controlnet": "controlnet stays in float: parts, 'controlnet': its controlnet is a Own, no ControlNetModel. "
        "Leave it out: it stays in float."
    }
    with pytest.raises(ConfigError, match="its controlnet is a Own"):
        few(pipe, data=DRAWN, parts="controlnet")
    with pytest.raises(ConfigError, match="its controlnet is a QuantizedUNet already"):
        few(quantized, data=DRAWN, parts="controlnet")


def test_rules_are_about_the_unet_and_bits_of_its_own_are_taken() -> None:
    (usual,) = wanted_parts(["unet", "controlnet"])[1]
    (own,) = wanted_parts(["unet", "controlnet"], {"controlnet": "w8a16"})[1]
    job = Job(QDiffConfig(weight_bits=4, rules=(Rule("up_blocks.*", weight_bits=8),)), SampleRequest(1, 2))
    assert job.config_of(usual) == QDiffConfig(weight_bits=4)
    assert job.config_of(own).weight_bits == 8
    assert job.config_of(own).rules
    assert [each.word for each in wanted_parts(None)[1]] == ["controlnet", "vae", "text"]


@pytest.mark.slow
def test_all_parts_with_half_precision(few: Few) -> None:
    pipe = few(controlled().to(torch.float16), data=DRAWN, bits=QDiffConfig(timestep_bins=2))
    assert list(all_quantized(pipe)) == ["unet", "text_encoder", "vae.decoder", "controlnet"]
    assert pipe.controlnet.dtype == torch.float16
    assert answer(pipe.controlnet, **{k: v.half() for k, v in step().items()}).dtype == torch.float16
    expected = image(controlled(), image=PICTURE)
    assert psnr(expected, image(pipe, image=PICTURE).astype(np.float32)) > 25


@pytest.mark.slow
def test_several(few: Few, tmp_path: Path) -> None:
    both = [[PICTURE, PICTURE.rotate(90)], [PICTURE.rotate(180), PICTURE]]
    given: dict[str, Any] = {"controlnet_conditioning_scale": [1.0, 0.4], "control_guidance_end": [1.0, 0.6]}
    drawn: dict[str, Any] = {"image": [PICTURE, PICTURE.rotate(90)]} | given
    pipe = few(controlled(2), data={**DRAWN, "image": both, **given}, parts="controlnet")
    assert isinstance(pipe.controlnet, QuantizedMultiControlNetModel)
    assert list(all_quantized(pipe)) == ["controlnet", "controlnet_1"]
    expected = image(controlled(2), **drawn)
    assert psnr(expected, image(pipe, **drawn)) > 30
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert np.array_equal(image(loaded, **drawn), image(pipe, **drawn))
    assert load_qdiff(tmp_path / "pipeline", subfolder="controlnet_1").signature.timestep is not None


@pytest.mark.slow
def test_of_the_larger_kind(few: Few, tmp_path: Path) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return ready(controlled_xl())

    pipe = few(made(), data={"prompt": DRAWN["prompt"], "image": PICTURE}, parts="controlnet")
    assert isinstance(pipe, StableDiffusionXLControlNetPipeline)
    drawn = {"image": PICTURE, "controlnet_conditioning_scale": 0.5}
    assert psnr(image(made(), **drawn), image(pipe, **drawn)) > 30
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert np.array_equal(image(loaded, **drawn), image(pipe, **drawn))
