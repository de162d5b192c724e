"""Lines of pipelines whose network is a transformer."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.pipelines.line import Line
from tests.pipelines.parts import (
    TEXT,
    TOKENS,
    ddim,
    embeddings,
    in_two_halves,
    rows,
    vae,
)

FLUX = embeddings(pooled_prompt_embeds=rows(1, TEXT), height=16, width=16)


def dit() -> Any:
    network = d.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    return d.DiTPipeline(transformer=network, vae=vae(), scheduler=ddim())


def pixart() -> Any:
    network = d.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        caption_channels=TEXT,
        use_additional_conditions=False,
    )
    return d.PixArtAlphaPipeline(
        tokenizer=None, text_encoder=None, vae=vae(), transformer=network, scheduler=d.DPMSolverMultistepScheduler()
    )


def stable_diffusion3() -> Any:
    network = d.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return d.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=1.5),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> Any:
    network = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(2, 2, 4),
    )
    return d.FluxPipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        vae=vae(latent_channels=1, shift_factor=0.1, scaling_factor=1.5),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=network,
    )


LINES = [
    Line("DiTPipeline", dit, lambda: {"class_labels": [1], "output_type": "np"}),
    Line(
        "PixArtAlphaPipeline",
        pixart,
        embeddings(
            **in_two_halves("prompt_attention_mask"),
            negative_prompt=None,
            use_resolution_binning=False,
            height=16,
            width=16,
        ),
    ),
    Line(
        "StableDiffusion3Pipeline",
        stable_diffusion3,
        embeddings(
            negative_prompt_embeds=rows(1, TOKENS, TEXT) / 2,
            pooled_prompt_embeds=rows(1, 2 * TEXT),
            negative_pooled_prompt_embeds=rows(1, 2 * TEXT) / 2,
            height=16,
            width=16,
        ),
    ),
    Line("FluxPipeline", flux, FLUX),
]
