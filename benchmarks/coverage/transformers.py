"""Diffusion transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from benchmarks.coverage.network import Built, network

BATCH, SIZE, TOKENS, TEXT = 2, 8, 5, 24
FLOW = (0.98, 0.75, 0.5, 0.25, 0.05)


def noise(channels: int, *sizes: int) -> torch.Tensor:
    return torch.randn(BATCH, channels, *(sizes or (SIZE, SIZE)))


def text(width: int = TEXT, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(BATCH, tokens, width)


def times(value: float) -> torch.Tensor:
    return torch.full((BATCH,), value)


def filled(model: Any) -> Any:
    """With noise in layers that begin at zero, as gates and last layers of transformers do."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@network("DiT", "class labels, adaptive norms")
def dit() -> Built:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return filled(model), {
        "hidden_states": noise(4),
        "timestep": torch.tensor([301, 301]),
        "class_labels": torch.tensor([1, 9]),
    }


@network("PixArt", "α")
def pixart() -> Built:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=SIZE,
        use_additional_conditions=False,
    )
    return filled(model), {
        "hidden_states": noise(4),
        "encoder_hidden_states": text(12),
        "timestep": torch.tensor([301, 301]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": torch.ones(BATCH, TOKENS),
    }


@network("PixArt", "α of 1024 (size and aspect ratio)")
def pixart_sized() -> Built:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        num_layers=1,
        cross_attention_dim=24,
        caption_channels=12,
        sample_size=SIZE,
        use_additional_conditions=True,
    )
    return filled(model), {
        "hidden_states": noise(4),
        "encoder_hidden_states": text(12),
        "timestep": torch.tensor([301, 301]),
        "added_cond_kwargs": {"resolution": torch.rand(BATCH, 2) * 64, "aspect_ratio": torch.rand(BATCH, 1)},
    }


def sd3(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        **{"sample_size": SIZE, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8},
        **{"num_attention_heads": 4, "joint_attention_dim": TEXT, "caption_projection_dim": 32},
        **{"pooled_projection_dim": 12, "pos_embed_max_size": 8},
    }
    return filled(diffusers.SD3Transformer2DModel(**(settings | changes)))


def sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": noise(4),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(BATCH, 12),
        "timestep": times(501.0),
    }


@network("Stable Diffusion 3", "two streams")
def stable_diffusion_3() -> Built:
    return sd3(), sd3_inputs()


@network("Stable Diffusion 3", "3.5 (normalised queries, second attention)")
def stable_diffusion_35() -> Built:
    return sd3(qk_norm="rms_norm", dual_attention_layers=(0,)), sd3_inputs()


@network("Flux", "double and single streams", timesteps=FLOW)
def flux() -> Built:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=12,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    return filled(model), {
        "hidden_states": torch.randn(BATCH, 16, 4),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(BATCH, 12),
        "timestep": times(0.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(TOKENS, 3),
        "guidance": times(3.5),
    }


@network("Sana", "linear attention")
def sana() -> Built:
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=SIZE,
    )
    return filled(model), {"hidden_states": noise(4), "encoder_hidden_states": text(12), "timestep": times(501.0)}


@network("AuraFlow", "joint and single blocks", timesteps=FLOW)
def auraflow() -> Built:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=TEXT,
        pos_embed_max_size=64,
    )
    return filled(model), {"hidden_states": noise(4), "encoder_hidden_states": text(), "timestep": times(0.5)}


@network("HunyuanDiT", "long skips, two text encoders")
def hunyuan_dit() -> Built:
    model = diffusers.HunyuanDiT2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        hidden_size=16,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        text_len=4,
        text_len_t5=4,
        use_style_cond_and_image_meta_size=False,
    )
    angles = torch.outer(torch.arange(16).float(), 1 / 10 ** torch.linspace(0, 2, 4)).repeat_interleave(2, 1)
    return filled(model), {
        "hidden_states": noise(4),
        "timestep": times(501.0),
        "encoder_hidden_states": text(12, 4),
        "text_embedding_mask": torch.ones(BATCH, 4),
        "encoder_hidden_states_t5": text(16, 4),
        "text_embedding_mask_t5": torch.ones(BATCH, 4),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


@network("Lumina", "2 (grouped keys, refiners)", timesteps=FLOW)
def lumina() -> Built:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 32, 32),
        cap_feat_dim=12,
    )
    return filled(model), {
        "hidden_states": noise(4),
        "timestep": times(0.5),
        "encoder_hidden_states": text(12),
        "encoder_attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.bool),
    }


@network("CogView", "3 Plus")
def cogview3() -> Built:
    model = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=SIZE,
    )
    pair = torch.full((BATCH, 2), 64.0)
    return filled(model), {
        "hidden_states": noise(4),
        "encoder_hidden_states": text(12),
        "timestep": torch.tensor([301, 301]),
        "original_size": pair,
        "target_size": pair.clone(),
        "crop_coords": torch.zeros(BATCH, 2),
    }


@network("CogVideoX", "text to video")
def cogvideox() -> Built:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=12,
        num_layers=2,
        sample_width=SIZE,
        sample_height=SIZE,
        sample_frames=9,
        max_text_seq_length=TOKENS,
    )
    return filled(model), {
        "hidden_states": torch.randn(BATCH, 3, 4, SIZE, SIZE),
        "encoder_hidden_states": text(12),
        "timestep": torch.tensor([301, 301]),
    }


@network("Latte", "spatial and temporal blocks in turns")
def latte() -> Built:
    model = diffusers.LatteTransformer3DModel(
        sample_size=SIZE,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=12,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=3,
    )
    return filled(model), {
        "hidden_states": noise(4, 3, SIZE, SIZE),
        "timestep": torch.tensor([301, 301]),
        "encoder_hidden_states": text(12),
    }


@network("LTX-Video", "text to video")
def ltx_video() -> Built:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=16,
    )
    return filled(model), {
        "hidden_states": torch.randn(BATCH, 2 * 4 * 4, 8),
        "encoder_hidden_states": text(16),
        "timestep": torch.tensor([301, 301]),
        "encoder_attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


@network("Wan", "2.1, text to video")
def wan() -> Built:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return filled(model), {
        "hidden_states": noise(4, 2, SIZE, SIZE),
        "timestep": torch.tensor([301, 301]),
        "encoder_hidden_states": text(16),
    }


@network("Mochi", "asymmetric two streams")
def mochi() -> Built:
    model = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return filled(model), {
        "hidden_states": noise(4, 2, SIZE, SIZE),
        "encoder_hidden_states": text(16, 16),
        "timestep": torch.tensor([301, 301]),
        "encoder_attention_mask": torch.ones(BATCH, 16, dtype=torch.bool),
    }
