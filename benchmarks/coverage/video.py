"""UNets over frames."""

from __future__ import annotations

import torch
from diffusers import I2VGenXLUNet, UNet3DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel

from benchmarks.coverage.network import Built, network

BATCH, FRAMES, SIZE, TEXT = 2, 3, 8, 24


def clip(channels: int) -> torch.Tensor:
    return torch.randn(BATCH, channels, FRAMES, SIZE, SIZE)


def text() -> torch.Tensor:
    return torch.randn(BATCH, 5, TEXT)


@network("ModelScope text-to-video", "UNet3DConditionModel")
def modelscope() -> Built:
    model = UNet3DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
    )
    return model, {"sample": clip(4), "timestep": torch.tensor(301), "encoder_hidden_states": text()}


@network("Stable Video Diffusion", "image to video", timesteps=(1.6, 1.0, 0.3, -0.4, -1.5))
def svd() -> Built:
    model = UNetSpatioTemporalConditionModel(
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
    return model, {
        "sample": torch.randn(BATCH, FRAMES, 8, SIZE, SIZE),
        "timestep": torch.tensor(0.3),
        "encoder_hidden_states": torch.randn(BATCH, 1, TEXT),
        "added_time_ids": torch.rand(BATCH, 3) * 8,
    }


@network("AnimateDiff", "motion modules between the layers")
def animatediff() -> Built:
    model = UNetMotionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )
    prompts = text().repeat_interleave(FRAMES, dim=0)  # as its pipeline hands it over
    return model, {"sample": clip(4), "timestep": torch.tensor(301), "encoder_hidden_states": prompts}


@network("I2VGen-XL", "image to video")
def i2vgen() -> Built:
    model = I2VGenXLUNet(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT,
        attention_head_dim=8,
    )
    return model, {
        "sample": clip(4),
        "timestep": torch.tensor(301),
        "fps": torch.tensor([8, 8]),
        "image_latents": clip(4),
        "image_embeddings": torch.randn(BATCH, TEXT),
        "encoder_hidden_states": text(),
    }
