"""`quantize(pipe, parts=...)`: every part by itself, on what the same trajectories show of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoPipelineForImage2Image, DDIMPipeline, UNet2DModel
from diffusers.loaders import lora_base
from whole import image, psnr, sqnr, tiny_decoder, tiny_pipeline, tiny_xl

from qdiff_fx import QDiffConfig, QuantizedUNet, collect_calibration_data
from qdiff_fx.errors import CalibrationError, CaptureError, ConfigError, InputError, QDiffError
from qdiff_fx.networks.autoencoder import QuantizedAutoencoderKL, QuantizedAutoencoderTiny
from qdiff_fx.quant.qparams import SIXTEEN_BITS
from qdiff_fx.report.bits import bits_of_layers
from qdiff_fx.tuning.finer import Limits
from qdiff_fx.workflow import parts

Few = Callable[..., Any]


def test_all_parts_are_quantized_each_by_its_own_recipe(quantized_pipeline: Any) -> None:
    pipe = quantized_pipeline
    assert isinstance(pipe.unet, QuantizedUNet)
    assert isinstance(pipe.text_encoder, QuantizedUNet)
    assert isinstance(pipe.vae, QuantizedAutoencoderKL)
    assert isinstance(pipe.vae.decoder, QuantizedUNet)
    assert not isinstance(pipe.vae.encoder, QuantizedUNet)
    assert pipe.vae.decoder.signature.timestep is None
    assert pipe.vae.decoder.explain().counts[1] == 0
    assert pipe.text_encoder.qconfig.rules[0].act_bits == SIXTEEN_BITS
    assert psnr(image(tiny_pipeline()), image(pipe)) > 30


def test_bits_of_a_decoder_are_those_of_most_of_its_layers(few: Few) -> None:
    """The rest have more, within the limits; what a configuration says is taken as it is."""
    finer, alike = (
        few(tiny_pipeline(), bits={"vae": bits}, parts="vae").vae.decoder
        for bits in ("w4a8", QDiffConfig.of_bits("w4a8"))
    )
    assert not alike.qconfig.rules
    assert finer.qconfig.rules
    assert finer.qconfig.weight_bits == 4
    before, after = (bits_of_layers(network.graph_module) for network in (alike, finer))
    assert before.weights < after.weights <= before.weights * (1 + Limits().bytes)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        picture = tiny_pipeline().vae.decoder(latents)
    assert sqnr(picture, finer(latents)) > sqnr(picture, alike(latents))


def test_what_pipelines_and_people_ask_an_autoencoder_goes_on_working(quantized_pipeline: Any) -> None:
    vae, own = quantized_pipeline.vae, tiny_pipeline().vae
    assert isinstance(vae, AutoencoderKL)
    assert vae.config.scaling_factor == own.config.scaling_factor
    assert vae.dtype == torch.float32
    assert vae.device.type == "cpu"
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents).sample
    vae.enable_slicing()
    try:
        sliced = vae.decode(latents).sample
    finally:
        vae.disable_slicing()
    assert torch.equal(whole, sliced)
    assert vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean.shape == (1, 4, 8, 8)


def test_tiles_are_decoded_as_the_float_decoder_does(quantized_pipeline: Any) -> None:
    drawn = []
    for pipe in (tiny_pipeline(), quantized_pipeline):
        pipe.vae.enable_tiling()
        try:
            drawn.append(image(pipe, height=48, width=80))  # a tile of latents has 16 pixels each way
        finally:
            pipe.vae.disable_tiling()
    assert drawn[0].shape == (1, 48, 80, 3)
    assert psnr(*drawn) > 30


def test_images_of_other_sizes(quantized_pipeline: Any) -> None:
    other = {"height": 48, "width": 16}
    assert psnr(image(tiny_pipeline(), **other), image(quantized_pipeline, **other)) > 30


def test_another_type_is_taken_and_returned_by_all_parts(quantized_pipeline: Any, saved: Any) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.float16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.vae.decoder.dtype, pipe.text_encoder.dtype} == {torch.float16}
    assert psnr(image(quantized_pipeline), image(pipe)) > 30
    pipe.vae.to(torch.float32)
    assert pipe.vae.dtype == torch.float32
    with pytest.raises(InputError, match="is float16, but the network was captured with float32"):
        pipe.vae.decoder(torch.zeros(1, 4, 8, 8, dtype=torch.float16))


def test_nan_in_the_middle_is_said(quantized_pipeline: Any) -> None:
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, 1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="'sample': it holds NaN"):
        quantized_pipeline.vae.decode(latents)


def test_text_encoders_alone_need_no_images(few: Few, float_pipeline: Any) -> None:
    calls = []
    float_pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    few(float_pipeline, data=["a fish", "two birds"], parts="text")
    assert isinstance(float_pipeline.text_encoder, QuantizedUNet)
    assert not isinstance(float_pipeline.unet, QuantizedUNet)
    assert not calls
    assert psnr(image(tiny_pipeline()), image(float_pipeline)) > 30


def test_what_a_text_encoder_was_not_captured_with_is_said(quantized_pipeline: Any) -> None:
    with pytest.raises(InputError, match="'output_hidden_states': the network has no such argument"):
        image(quantized_pipeline, clip_skip=1)


def test_a_lora_for_a_quantized_text_encoder_is_refused(
    quantized_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_base, "USE_PEFT_BACKEND", True)  # which is asked for afterwards only
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
    with pytest.raises(QDiffError, match="a LoRA cannot be loaded into it: it is a text encoder.*parts='unet,vae'"):
        type(quantized_pipeline).load_lora_into_text_encoder(weights, None, quantized_pipeline.text_encoder)


@pytest.mark.slow
def test_half_precision_and_two_text_encoders(few: Few) -> None:
    expected = image(tiny_xl())
    pipe = few(tiny_xl().to(torch.float16), parts="vae,text")
    assert not isinstance(pipe.unet, QuantizedUNet)
    assert isinstance(pipe.text_encoder, QuantizedUNet)
    assert isinstance(pipe.text_encoder_2, QuantizedUNet)
    assert pipe.vae.dtype == torch.float16
    assert psnr(expected, image(pipe).astype(np.float32)) > 25
    with pytest.raises(ConfigError, match="its vae.decoder is a QuantizedUNet already"):
        few(pipe, parts=["vae"])
    network = few(pipe).unet  # what is left
    assert isinstance(network, QuantizedUNet)


def test_the_tiny_decoder_and_its_encoder_where_they_are_named(few: Few) -> None:
    own = tiny_decoder()
    pipe = few(tiny_pipeline(vae=own), bits={"vae": "w8a8", "encoder": "w6a8"}, parts=["vae", "encoder"])
    assert isinstance(pipe.vae, QuantizedAutoencoderTiny)
    assert pipe.vae.encoder.qconfig.weight_bits == 6
    assert pipe.vae.dtype == torch.float32
    assert not isinstance(own.decoder, QuantizedUNet)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        picture = own.decode(latents).sample
        encoded = own.encode(picture).latents
    assert sqnr(picture, pipe.vae.decode(latents).sample) > 25
    assert sqnr(encoded, pipe.vae.encode(picture).latents) > 15
    from_image = AutoPipelineForImage2Image.from_pipe(pipe)
    drawn = from_image("a fish", image=picture, num_inference_steps=4, output_type="np").images
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": "unet,decoder2"}, "parts: 'decoder2' is none of unet, controlnet, vae, encoder, text"),
        ({"parts": ""}, "parts: '' is none of"),
        ({"parts": []}, "parts: none are named"),
        ({"parts": "unet", "bits": {"vae": "w4a8"}}, r"bits: 'vae' is not among the parts \(unet\)"),
        ({"bits": {"vae": "four"}}, "bits: 'four' says no bits"),
        ({"bits": {"vea": "w4a8"}}, "parts: 'vea' is none of"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    few: Few, float_pipeline: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        few(float_pipeline, **given)


def test_parts_that_are_not_there(few: Few) -> None:
    unet = UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=8,
    )
    pipe = DDIMPipeline(unet.eval(), tiny_pipeline().scheduler)
    for word, what in (("vae", "autoencoder with a decoder"), ("encoder", "an encoder"), ("text", "text encoder")):
        with pytest.raises(ConfigError, match=f"parts, '{word}': DDIMPipeline has no .*{what}"):
            few(pipe, parts=["unet", word])
    assert pipe.unet is unet


def test_recorded_inputs_of_the_network_say_nothing_about_others(few: Few, float_pipeline: Any) -> None:
    data = collect_calibration_data(
        float_pipeline, num_samples=2, num_inference_steps=2, seed=0, inputs={"prompt": ["a", "b"]}, progress=False
    )
    with pytest.raises(ConfigError, match="parts: its recorded inputs say nothing about vae"):
        few(float_pipeline, data=data, parts="unet,vae")
    with pytest.raises(ConfigError, match="parts: a network alone has no vae"):
        few(float_pipeline.unet, data=data, parts="unet,vae")


def test_another_autoencoder_stays_in_float_or_is_refused(few: Few) -> None:
    class Own(AutoencoderKL):
        pass

    settings = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    pipe = tiny_pipeline(vae=Own(**settings).eval())
    with pytest.raises(ConfigError, match="its autoencoder is a Own, none of AutoencoderKL, AutoencoderTiny"):
        few(pipe, parts="vae")
    with pytest.warns(UserWarning, match="vae stays in float: .*none of AutoencoderKL"):
        few(pipe)
    assert type(pipe.vae) is Own
    assert isinstance(pipe.text_encoder, QuantizedUNet)


def test_a_part_that_cannot_be_captured(few: Few, monkeypatch: pytest.MonkeyPatch, float_pipeline: Any) -> None:
    prepare = parts.prepare_qdiff

    def failing(network: Any, *given: Any, **more: Any) -> Any:
        if network is float_pipeline.vae.decoder:
            raise CaptureError("something in it", where="mid_block")
        return prepare(network, *given, **more)

    monkeypatch.setattr(parts, "prepare_qdiff", failing)
    own = float_pipeline.vae
    with pytest.raises(CaptureError, match="something in it") as raised:
        few(float_pipeline, parts="vae,text")
    assert "vae.decoder, which parts= names" in "".join(raised.value.__notes__)
    assert float_pipeline.vae is own
    with pytest.warns(UserWarning, match="vae.decoder stays in float: mid_block: something in it"):
        few(float_pipeline)
    assert float_pipeline.vae is own
    assert isinstance(float_pipeline.unet, QuantizedUNet)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of arrays of NaN that become pictures
def test_latents_that_are_not_finite_are_said(few: Few, monkeypatch: pytest.MonkeyPatch, float_pipeline: Any) -> None:
    step = type(float_pipeline.scheduler).step

    def broken(self: Any, noise: torch.Tensor, timestep: Any, sample: torch.Tensor, *given: Any, **more: Any) -> Any:
        found = step(self, noise, timestep, sample, *given, **more)
        last = int(timestep) == int(self.timesteps[-1])
        return (found[0] * torch.nan, *found[1:]) if last else found

    monkeypatch.setattr(type(float_pipeline.scheduler), "step", broken)
    with pytest.raises(CalibrationError, match="vae.decoder: the latents that the float pipeline came to hold NaN"):
        few(float_pipeline, parts="vae")
    assert not isinstance(float_pipeline.vae.decoder, QuantizedUNet)
    assert "forward" not in vars(float_pipeline.vae.decoder)


def test_a_failure_leaves_the_pipeline_as_it_was(
    few: Few, monkeypatch: pytest.MonkeyPatch, float_pipeline: Any
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise QDiffError("no more memory")

    from qdiff_fx.workflow import convert

    monkeypatch.setattr(convert, "convert_qdiff", failing)
    before, expected = dict(float_pipeline.components), image(float_pipeline)
    with pytest.raises(QDiffError, match="no more memory"):
        few(float_pipeline, parts="vae,text")
    assert float_pipeline.components == before
    assert np.array_equal(image(float_pipeline), expected)


def test_the_network_alone(few: Few, float_pipeline: Any) -> None:
    before = dict(float_pipeline.components)
    few(float_pipeline, parts="unet")
    assert isinstance(float_pipeline.unet, QuantizedUNet)
    assert float_pipeline.vae is before["vae"]
    assert float_pipeline.text_encoder is before["text_encoder"]
