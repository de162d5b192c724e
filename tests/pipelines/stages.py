"""Lines of pipelines that draw in stages: priors, and what decodes them."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.pipelines.line import Line
from tests.pipelines.parts import (
    FISH,
    SMALL,
    TEXT,
    TOKENS,
    ddim,
    embeddings,
    image_encoder,
    image_processor,
    in_two_halves,
    rows,
    text_encoder,
    tokenizer,
    unet,
)

IMAGE = {"image_embeds": rows(1, TEXT), "negative_image_embeds": rows(1, TEXT) / 2, "output_type": "latent", **SMALL}
PRIOR = {"image_embeddings": rows(1, 4, 4, 4)}


def movq() -> Any:
    return d.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=8,
        vq_embed_dim=4,
        norm_type="spatial",
    )


def kandinsky22() -> Any:
    network = unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="image_proj",
        attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    return d.KandinskyV22Pipeline(unet=network, scheduler=ddim(), movq=movq())


def kandinsky22_prior() -> Any:
    prior = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=TEXT, num_embeddings=TOKENS
    )
    return d.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=image_encoder(),
        text_encoder=text_encoder(projection=True),
        tokenizer=tokenizer(),
        scheduler=d.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0, num_train_timesteps=1000
        ),
        image_processor=image_processor(),
    )


def kandinsky3() -> Any:
    network = d.Kandinsky3UNet(
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 32),
        cross_attention_dim=TEXT,
        encoder_hid_dim=TEXT,
    )
    return d.Kandinsky3Pipeline(
        tokenizer=None, text_encoder=None, unet=network, scheduler=d.DDPMScheduler(), movq=movq()
    )


def wuerstchen_prior() -> Any:
    prior = d.pipelines.deprecated.wuerstchen.WuerstchenPrior(c_in=2, c=16, c_cond=TEXT, c_r=16, depth=2, nhead=2)
    return d.WuerstchenPriorPipeline(
        prior=prior,
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        scheduler=d.DDPMWuerstchenScheduler(),
    )


def paella() -> Any:
    return d.pipelines.deprecated.wuerstchen.PaellaVQModel(
        levels=1, bottleneck_blocks=1, num_vq_embeddings=16, embed_dim=16
    )


def wuerstchen() -> Any:
    decoder = d.pipelines.deprecated.wuerstchen.WuerstchenDiffNeXt(
        c_cond=TEXT, c_hidden=[16], nhead=[-1], blocks=[1], level_config=["CT"], clip_embd=TEXT, inject_effnet=[False]
    )
    return d.WuerstchenDecoderPipeline(
        decoder=decoder,
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=paella(),
        latent_dim_scale=4.0,
    )


def cascade_unet(**changes: Any) -> Any:
    return d.StableCascadeUNet(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "timestep_ratio_embedding_dim": 16,
            "conditioning_dim": 16,
            "block_out_channels": (16, 16),
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "clip_text_pooled_in_channels": TEXT,
            "clip_image_in_channels": TEXT,
            "clip_text_in_channels": TEXT,
            "clip_seq": 2,
        }
        | changes
    )


def cascade_prior() -> Any:
    return d.StableCascadePriorPipeline(
        prior=cascade_unet(),
        text_encoder=text_encoder(projection=True),
        tokenizer=tokenizer(),
        scheduler=d.DDPMWuerstchenScheduler(),
        resolution_multiple=4,
    )


def cascade_decoder() -> Any:
    network = cascade_unet(
        effnet_in_channels=4, clip_text_in_channels=None, clip_image_in_channels=None, switch_level=None
    )
    return d.StableCascadeDecoderPipeline(
        decoder=network,
        text_encoder=text_encoder(projection=True),
        tokenizer=tokenizer(),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=paella(),
        latent_dim_scale=4.0,
    )


LINES = [
    Line("KandinskyV22PriorPipeline", kandinsky22_prior, lambda: {"prompt": ["a fish"]}),
    Line("KandinskyV22Pipeline", kandinsky22, lambda: IMAGE),
    # A single prediction of it keeps 11 dB (docs/coverage.md); three steps were seen to keep 8.5.
    Line("Kandinsky3Pipeline", kandinsky3, embeddings(**in_two_halves(), **SMALL), enough=6.0),
    Line("WuerstchenPriorPipeline", wuerstchen_prior, lambda: {"prompt": ["a fish"]}),
    Line(
        "WuerstchenDecoderPipeline",
        wuerstchen,
        lambda: FISH | PRIOR,
    ),
    Line("StableCascadePriorPipeline", cascade_prior, lambda: {"prompt": ["a fish"], **SMALL}),
    Line(
        "StableCascadeDecoderPipeline",
        cascade_decoder,
        lambda: FISH | PRIOR,
    ),
]
