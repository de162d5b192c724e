"""Lines of pipelines that draw frames or sound."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.pipelines.line import Line
from tests.pipelines.parts import (
    FISH,
    SMALL,
    TEXT,
    image_encoder,
    image_processor,
    picture,
    stable_diffusion_parts,
    text_encoder,
    tokenizer,
    unet,
)

FRAMES = 3
VIDEO = FISH | {"num_frames": FRAMES, **SMALL}


def animated(kind: Any = None) -> Any:
    parts = stable_diffusion_parts()
    for name in ("safety_checker", "requires_safety_checker"):
        del parts[name]
    adapter = d.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=8,
    )
    return (kind or d.AnimateDiffPipeline)(unet=unet(), motion_adapter=adapter, **parts)


def text_to_video() -> Any:
    parts = {name: part for name, part in stable_diffusion_parts().items() if name in ("vae", "scheduler")}
    network = d.UNet3DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
    )
    return d.TextToVideoSDPipeline(unet=network, text_encoder=text_encoder(), tokenizer=tokenizer(), **parts)


def stable_video() -> Any:
    network = d.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        cross_attention_dim=TEXT,
        num_attention_heads=(2, 4),
        num_frames=FRAMES,
    )
    scheduler = d.EulerDiscreteScheduler(
        timestep_type="continuous",
        timestep_spacing="leading",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    decoder = d.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    return d.StableVideoDiffusionPipeline(
        vae=decoder,
        image_encoder=image_encoder(224),
        unet=network,
        scheduler=scheduler,
        feature_extractor=image_processor(),
    )


def dance() -> Any:
    network = d.UNet1DModel(
        sample_size=128,
        sample_rate=16000,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D",
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )
    return d.DanceDiffusionPipeline(unet=network, scheduler=d.IPNDMScheduler())


LINES = [
    Line("AnimateDiffPipeline", animated, lambda: VIDEO),
    Line("TextToVideoSDPipeline", text_to_video, lambda: VIDEO),
    Line(
        "StableVideoDiffusionPipeline",
        stable_video,
        lambda: {"image": picture(), "output_type": "latent", "num_frames": FRAMES, **SMALL},
    ),
    Line("DanceDiffusionPipeline", dance, lambda: {"audio_length_in_s": 128 / 16000}),
]
