"""Lines of pipelines whose network is one of Stable Diffusion's kind, or that draw without text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers as d
import torch

from tests.pipelines.line import Line
from tests.pipelines.parts import (
    FISH,
    SIZE,
    TEXT,
    TOKENS,
    ddim,
    embeddings,
    image_encoder,
    image_processor,
    picture,
    rows,
    sdxl_parts,
    stable_diffusion_parts,
    text_encoder,
    tokenizer,
    unconditional,
    unet,
    unet_xl,
    vae,
    vq_model,
)
from tests.smallest import ONE_RESOLUTION


def prompted(**more: Any) -> Any:
    """Arguments of a drawing from a prompt."""
    return lambda: FISH | {name: value() if callable(value) else value for name, value in more.items()}


def stable_diffusion(kind: Any = None, network: Mapping[str, Any] | None = None, **parts: Any) -> Any:
    """A pipeline of Stable Diffusion 1 of that class, its UNet with those settings."""
    kind = kind or d.StableDiffusionPipeline
    return kind(unet=unet(**(network or {})), **(stable_diffusion_parts() | parts))


def sdxl(kind: Any = None, **parts: Any) -> Any:
    return (kind or d.StableDiffusionXLPipeline)(**({"unet": unet_xl()} | sdxl_parts() | parts))


def upscaler() -> Any:
    parts = {**stable_diffusion_parts(), "low_res_scheduler": d.DDPMScheduler(), "max_noise_level": 350}
    del parts["requires_safety_checker"]
    network = unet(in_channels=7, num_class_embeds=1000)
    return d.StableDiffusionUpscalePipeline(unet=network, **parts)


def variations() -> Any:
    return d.StableDiffusionImageVariationPipeline(
        vae=vae(),
        image_encoder=image_encoder(),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=image_processor(),
        requires_safety_checker=False,
    )


def unclip_variations() -> Any:
    return d.StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(),
        image_encoder=image_encoder(),
        image_normalizer=d.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(embedding_dim=TEXT),
        image_noising_scheduler=d.DDPMScheduler(),
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * TEXT),
        scheduler=ddim(),
        vae=vae(),
    )


def shaken(model: Any) -> Any:
    """With numbers in the layers that begin at zero: an untrained one would add nothing."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def controlnet(network: Any) -> Any:
    made = d.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16))
    return shaken(made)


def controlled() -> Any:
    network = unet()
    parts = stable_diffusion_parts()
    return d.StableDiffusionControlNetPipeline(unet=network, controlnet=controlnet(network), **parts)


def controlled_xl() -> Any:
    network = unet_xl()
    parts = sdxl_parts()
    return d.StableDiffusionXLControlNetPipeline(unet=network, controlnet=controlnet(network), **parts)


def adapted() -> Any:
    adapter = d.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    return stable_diffusion(d.StableDiffusionAdapterPipeline, adapter=shaken(adapter))


def deepfloyd() -> Any:
    network = unet(
        in_channels=3,
        out_channels=6,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="text_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    return d.IFPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=network,
        scheduler=d.DDPMScheduler(variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def marigold() -> Any:
    return d.MarigoldDepthPipeline(
        unet=unet(in_channels=8),
        vae=vae(),
        scheduler=ddim(prediction_type="v_prediction"),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        prediction_type="depth",
        default_denoising_steps=2,
        default_processing_resolution=2 * SIZE,
    )


def latent_consistency() -> Any:
    parts = stable_diffusion_parts() | {"scheduler": d.LCMScheduler(beta_schedule="scaled_linear")}
    return d.LatentConsistencyModelPipeline(unet=unet(time_cond_proj_dim=8), **parts)


def consistency() -> Any:
    network = unconditional(time_embedding_type="positional", resnet_time_scale_shift="scale_shift")
    return d.ConsistencyModelPipeline(unet=network, scheduler=d.CMStochasticIterativeScheduler())


def score_sde() -> Any:
    network = unconditional(time_embedding_type="fourier", norm_num_groups=4)
    return d.ScoreSdeVePipeline(unet=network, scheduler=d.ScoreSdeVeScheduler())


def ddpm() -> Any:
    return d.DDPMPipeline(unet=unconditional(**ONE_RESOLUTION), scheduler=d.DDPMScheduler())


PIXELS = {"output_type": "np"}


LINES = [
    Line("StableDiffusionPipeline", stable_diffusion, prompted()),
    Line(
        "StableDiffusionImg2ImgPipeline",
        lambda: stable_diffusion(d.StableDiffusionImg2ImgPipeline),
        prompted(image=picture, strength=0.8),
    ),
    Line(
        "StableDiffusionInpaintPipeline",
        lambda: stable_diffusion(d.StableDiffusionInpaintPipeline, {"in_channels": 9}),
        prompted(image=picture, mask_image=picture, height=32, width=32),
    ),
    Line(
        "StableDiffusionInstructPix2PixPipeline",
        lambda: stable_diffusion(d.StableDiffusionInstructPix2PixPipeline, {"in_channels": 8}),
        prompted(image=picture),
    ),
    Line("StableDiffusionUpscalePipeline", upscaler, prompted(image=picture, noise_level=20)),
    Line("StableDiffusionImageVariationPipeline", variations, lambda: {"image": picture(), "output_type": "latent"}),
    Line("StableUnCLIPImg2ImgPipeline", unclip_variations, prompted(image=picture)),
    Line("StableDiffusionControlNetPipeline", controlled, prompted(image=picture)),
    Line("StableDiffusionAdapterPipeline", adapted, prompted(image=picture)),
    Line(
        "StableDiffusionPAGPipeline",
        lambda: stable_diffusion(d.StableDiffusionPAGPipeline, pag_applied_layers=["mid"]),
        prompted(),
    ),
    Line("LatentConsistencyModelPipeline", latent_consistency, prompted()),
    Line("MarigoldDepthPipeline", marigold, lambda: {"image": picture(), "output_type": "np"}),
    Line("StableDiffusionXLPipeline", sdxl, prompted()),
    Line(
        "StableDiffusionXLImg2ImgPipeline",
        lambda: sdxl(d.StableDiffusionXLImg2ImgPipeline, unet=unet_xl(ids=5), requires_aesthetics_score=True),
        prompted(image=picture, strength=0.8),
    ),
    Line(
        "StableDiffusionXLInpaintPipeline",
        lambda: sdxl(d.StableDiffusionXLInpaintPipeline, unet=unet_xl(in_channels=9)),
        prompted(image=picture, mask_image=picture, height=32, width=32, strength=0.99),
    ),
    Line("StableDiffusionXLControlNetPipeline", controlled_xl, prompted(image=picture)),
    Line("IFPipeline", deepfloyd, embeddings(negative_prompt_embeds=rows(1, TOKENS, TEXT) / 2, output_type="np")),
    Line("DDPMPipeline", ddpm, lambda: PIXELS),
    Line("DDIMPipeline", lambda: d.DDIMPipeline(unet=unconditional(), scheduler=ddim()), lambda: PIXELS),
    Line("ConsistencyModelPipeline", consistency, lambda: PIXELS),
    Line("ScoreSdeVePipeline", score_sde, lambda: PIXELS),
    Line(
        "LDMSuperResolutionPipeline",
        lambda: d.LDMSuperResolutionPipeline(vqvae=vq_model(), unet=unconditional(in_channels=6), scheduler=ddim()),
        lambda: {"image": picture(), **PIXELS},
    ),
]
