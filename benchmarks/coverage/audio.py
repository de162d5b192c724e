"""Networks over sound and trajectories."""

from __future__ import annotations

import torch
from diffusers import PriorTransformer, StableAudioDiTModel, UNet1DModel, UNet2DConditionModel

from benchmarks.coverage.network import Built, network

BATCH = 2


@network("Dance Diffusion", "UNet1DModel", timesteps=(0.95, 0.7, 0.5, 0.25, 0.05))
def dance_diffusion() -> Built:
    model = UNet1DModel(
        sample_size=64,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        block_out_channels=(32, 32, 64),
        use_timestep_embedding=False,
    )
    return model, {"sample": torch.randn(BATCH, 2, 64), "timestep": torch.tensor(0.5)}


@network("Diffuser (planning)", "UNet1DModel over states and actions", timesteps=(19, 14, 9, 4, 0))
def planner() -> Built:
    model = UNet1DModel(
        sample_size=16,
        in_channels=14,
        out_channels=14,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        down_block_types=("DownResnetBlock1D",) * 2,
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        block_out_channels=(16, 32),
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_each_block=False,
        act_fn="mish",
    )
    return model, {"sample": torch.randn(BATCH, 14, 16), "timestep": torch.tensor(9)}


@network("AudioLDM", "the clip's embedding joined to the timestep's")
def audioldm() -> Built:
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=(16, 32),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=12,
        class_embeddings_concat=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return model, {
        "sample": torch.randn(BATCH, 4, 16, 8),
        "timestep": torch.tensor(301),
        "encoder_hidden_states": None,
        "class_labels": torch.randn(BATCH, 12),
    }


@network("Stable Audio", "DiT with grouped keys", timesteps=(0.98, 0.7, 0.5, 0.25, 0.05))
def stable_audio() -> Built:
    model = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=8,
        cross_attention_input_dim=12,
    )
    angles = torch.outer(torch.arange(17).float(), 1 / 10 ** torch.linspace(0, 2, 4))
    rotary = tuple(torch.cat([part, part], -1)[:, :4] for part in (angles.cos(), angles.sin()))
    return model, {
        "hidden_states": torch.randn(BATCH, 4, 16),
        "timestep": torch.full((BATCH,), 0.5),
        "encoder_hidden_states": torch.randn(BATCH, 5, 12),
        "global_hidden_states": torch.randn(BATCH, 1, 8),
        "rotary_embedding": rotary,
    }


@network("unCLIP", "prior (a transformer over embeddings)")
def prior() -> Built:
    model = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=12, num_embeddings=7
    )
    return model, {
        "hidden_states": torch.randn(BATCH, 12),
        "timestep": torch.tensor(301),
        "proj_embedding": torch.randn(BATCH, 12),
        "encoder_hidden_states": torch.randn(BATCH, 7, 12),
        "attention_mask": torch.ones(BATCH, 7, dtype=torch.bool),
    }
