"""UNets over images, as diffusers builds them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, Kandinsky3UNet, UNet2DConditionModel, UNet2DModel, UVit2DModel
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet

from benchmarks.coverage.network import Built, network

BATCH, SIZE, TOKENS, TEXT = 2, 16, 5, 24


def noise(channels: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(BATCH, channels, size, size)


def text(width: int = TEXT, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(BATCH, tokens, width)


def plain(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        **{"sample_size": SIZE, "in_channels": 3, "out_channels": 3, "layers_per_block": 1},
        **{"block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 8},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    }
    return UNet2DModel(**(settings | changes))


def conditional(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        **{"sample_size": SIZE, "in_channels": 4, "out_channels": 4, "layers_per_block": 1},
        **{"block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 2, "cross_attention_dim": TEXT},
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**(settings | changes))


def unconditioned(model: Any, **more: Any) -> Built:
    return model, {"sample": noise(3), "timestep": torch.tensor(301), **more}


def conditioned(model: Any, channels: int = 4, **more: Any) -> Built:
    return model, {"sample": noise(channels), "timestep": torch.tensor(301), "encoder_hidden_states": text(), **more}


@network("DDPM", "CIFAR-10")
def ddpm_cifar() -> Built:
    return unconditioned(plain(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0))


@network("DDPM", "attention at every level, three levels")
def ddpm_deep() -> Built:
    return unconditioned(
        plain(
            block_out_channels=(16, 32, 32),
            down_block_types=("AttnDownBlock2D",) * 3,
            up_block_types=("AttnUpBlock2D",) * 3,
        )
    )


@network("DDPM", "add_attention off")
def ddpm_without_attention() -> Built:
    return unconditioned(
        plain(add_attention=False, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    )


@network("ADM", "class labels, scale and shift")
def adm_classes() -> Built:
    model = plain(num_class_embeds=10, resnet_time_scale_shift="scale_shift")
    return unconditioned(model, class_labels=torch.tensor([1, 9]))


@network("ADM", "up and down by ResNet blocks")
def adm_resnet_sampling() -> Built:
    return unconditioned(
        plain(
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        )
    )


@network("ADM", "two classes' labels as a vector (identity)")
def adm_identity() -> Built:
    return unconditioned(plain(class_embed_type="identity"), class_labels=torch.randn(BATCH, 64))


@network("score-based SDE", "NCSN++", timesteps=(40.0, 12.0, 3.0, 0.6, 0.05))
def ncsnpp() -> Built:
    model = plain(
        time_embedding_type="fourier",
        block_out_channels=(32, 32),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        norm_num_groups=None,
        center_input_sample=True,
        mid_block_scale_factor=2**0.5,
    )
    return unconditioned(model, timestep=torch.tensor(3.0))


@network("score-based SDE", "DDPM++ (Fourier, VE)", timesteps=(40.0, 12.0, 3.0, 0.6, 0.05))
def ddpmpp() -> Built:
    return unconditioned(
        plain(time_embedding_type="fourier", mid_block_scale_factor=2**0.5), timestep=torch.tensor(3.0)
    )


@network("latent diffusion", "unconditional, VQ latents")
def ldm_unconditional() -> Built:
    return unconditioned(plain(attention_head_dim=16, act_fn="silu", norm_eps=1e-6))


@network("latent diffusion", "super-resolution (6 channels)")
def ldm_upscaler() -> Built:
    return plain(in_channels=6), {"sample": noise(6), "timestep": torch.tensor(301)}


@network("Stable Diffusion 1", "text to image")
def sd1() -> Built:
    return conditioned(conditional())


@network("Stable Diffusion 1", "three levels, transformers of depth 2")
def sd1_deep() -> Built:
    return conditioned(
        conditional(
            block_out_channels=(16, 32, 32),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            transformer_layers_per_block=2,
        )
    )


@network("Stable Diffusion 1", "inpainting (9 channels)")
def sd1_inpainting() -> Built:
    return conditioned(conditional(in_channels=9), 9)


@network("Stable Diffusion 1", "instruct-pix2pix (8 channels)")
def sd1_pix2pix() -> Built:
    return conditioned(conditional(in_channels=8), 8)


@network("Stable Diffusion 1", "image variations (one token)")
def sd1_variations() -> Built:
    model, inputs = conditioned(conditional())
    return model, inputs | {"encoder_hidden_states": text(tokens=1)}


@network("Stable Diffusion 1", "with ControlNet's residuals")
def sd1_controlled() -> Built:
    residuals = tuple(noise(*shape) for shape in [(16, 16), (16, 16), (16, 8), (32, 8)])
    return conditioned(
        conditional(), down_block_additional_residuals=residuals, mid_block_additional_residual=noise(32, 8)
    )


@network("Stable Diffusion 1", "masked prompt")
def sd1_masked() -> Built:
    mask = torch.ones(BATCH, TOKENS)
    mask[0, 3:] = 0
    return conditioned(conditional(), encoder_attention_mask=mask)


@network("Stable Diffusion 1", "IP-Adapter's image tokens")
def sd1_ip_adapter() -> Built:
    model = conditional()
    state = {
        "image_proj": {
            "proj.weight": torch.randn(4 * TEXT, 12) / 4,
            "proj.bias": torch.zeros(4 * TEXT),
            "norm.weight": torch.ones(TEXT),
            "norm.bias": torch.zeros(TEXT),
        },
        "ip_adapter": _ip_weights(model),
    }
    model._load_ip_adapter_weights([state])
    return conditioned(model, added_cond_kwargs={"image_embeds": [torch.randn(BATCH, 1, 12)]})


def _ip_weights(model: Any) -> dict[str, torch.Tensor]:
    """Keys and values of every cross-attention, numbered as IP-Adapter's files number them."""
    weights, number = {}, 1
    for name in model.attn_processors:
        if name.endswith("attn2.processor"):
            attention = model.get_submodule(name.removesuffix(".processor"))
            for kind in ("k", "v"):
                weights[f"{number}.to_{kind}_ip.weight"] = torch.randn(attention.to_k.out_features, TEXT) / 5
            number += 2
    return weights


@network("Stable Diffusion 2", "linear projections, several head sizes")
def sd2() -> Built:
    return conditioned(conditional(use_linear_projection=True, attention_head_dim=(2, 4)))


@network("Stable Diffusion 2", "attention in float32 (upcast)")
def sd2_upcast() -> Built:
    return conditioned(conditional(use_linear_projection=True, upcast_attention=True))


@network("Stable Diffusion 2", "unCLIP (image embedding as class)")
def sd2_unclip() -> Built:
    model = conditional(class_embed_type="projection", projection_class_embeddings_input_dim=12)
    return conditioned(model, class_labels=torch.randn(BATCH, 12))


@network("Stable Diffusion 2", "upscaler ×4 (noise level as class)")
def sd2_upscaler() -> Built:
    model = conditional(in_channels=7, num_class_embeds=20, only_cross_attention=(True, False))
    return conditioned(model, 7, class_labels=torch.tensor([3, 17]))


def sdxl_condition(width: int, ids: int) -> dict[str, Any]:
    return {"text_embeds": torch.randn(BATCH, width), "time_ids": torch.rand(BATCH, ids) * 64}


def sdxl(ids: int = 6, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        **{"transformer_layers_per_block": (1, 2), "attention_head_dim": (2, 4), "use_linear_projection": True},
        **{"addition_embed_type": "text_time", "addition_time_embed_dim": 8},
        "projection_class_embeddings_input_dim": ids * 8 + 16,
    }
    return conditional(**(settings | changes))


@network("Stable Diffusion XL", "base")
def sdxl_base() -> Built:
    return conditioned(sdxl(), added_cond_kwargs=sdxl_condition(16, 6))


@network("Stable Diffusion XL", "refiner")
def sdxl_refiner() -> Built:
    return conditioned(sdxl(5), added_cond_kwargs=sdxl_condition(16, 5))


@network("Stable Diffusion XL", "Segmind SSD-1B (no middle attention)")
def ssd_1b() -> Built:
    model = sdxl(mid_block_type="UNetMidBlock2D")
    return conditioned(model, added_cond_kwargs=sdxl_condition(16, 6))


@network("latent consistency", "guidance scale as an embedding")
def lcm() -> Built:
    return conditioned(conditional(time_cond_proj_dim=12), timestep_cond=torch.randn(BATCH, 12))


@network("DeepFloyd IF", "first stage")
def deepfloyd() -> Built:
    model = conditional(
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        act_fn="gelu",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        attention_head_dim=8,
        cross_attention_norm="group_norm",
        encoder_hid_dim=12,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        time_embedding_act_fn="gelu",
        resnet_skip_time_act=True,
    )
    return model, {"sample": noise(3), "timestep": torch.tensor(301), "encoder_hidden_states": text(12)}


@network("DeepFloyd IF", "super-resolution (timestep of the small image as class)")
def deepfloyd_upscaler() -> Built:
    model = conditional(
        in_channels=6,
        out_channels=6,
        cross_attention_dim=32,
        act_fn="gelu",
        class_embed_type="timestep",
        attention_head_dim=8,
        cross_attention_norm="group_norm",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        mid_block_scale_factor=2**0.5,
        resnet_time_scale_shift="scale_shift",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2**0.5,
    )
    inputs = {"sample": noise(6), "timestep": torch.tensor(301), "encoder_hidden_states": text(32)}
    return model, inputs | {"class_labels": torch.tensor([250, 250])}


@network("Kandinsky", "2.1 (text and image)")
def kandinsky21() -> Built:
    model = conditional(
        addition_embed_type="text_image",
        addition_embed_type_num_heads=2,
        cross_attention_dim=TEXT,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="text_image_proj",
        attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    condition = {"text_embeds": torch.randn(BATCH, TEXT), "image_embeds": torch.randn(BATCH, TEXT)}
    return conditioned(model, added_cond_kwargs=condition)


@network("Kandinsky", "2.2 (image embedding)")
def kandinsky22() -> Built:
    model = conditional(
        addition_embed_type="image",
        encoder_hid_dim=12,
        encoder_hid_dim_type="image_proj",
        attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    image = torch.randn(BATCH, 12)
    inputs = {"sample": noise(4), "timestep": torch.tensor(301), "encoder_hidden_states": None}
    return model, inputs | {"added_cond_kwargs": {"image_embeds": image}}


@network("Kandinsky", "3")
def kandinsky3() -> Built:
    model: Any = Kandinsky3UNet(
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 32),
        cross_attention_dim=TEXT,
        encoder_hid_dim=TEXT,
    )
    return conditioned(model, encoder_attention_mask=torch.ones(BATCH, TOKENS))


@network("ControlNet", "of Stable Diffusion 1")
def controlnet() -> Built:
    model: Any = ControlNetModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
    )
    for parameter in model.parameters():  # its last convolutions begin at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return conditioned(model, controlnet_cond=noise(3, 2 * SIZE))


@network("Würstchen", "Stable Cascade, first stage", timestep="timestep_ratio", timesteps=(1.0, 0.75, 0.5, 0.25, 0.05))
def stable_cascade() -> Built:
    model = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=16,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=12,
        clip_image_in_channels=12,
        clip_text_in_channels=12,
        clip_seq=2,
    )
    inputs = {"sample": noise(4), "timestep_ratio": torch.full((BATCH,), 0.5)}
    return model, inputs | {
        "clip_text_pooled": torch.randn(BATCH, 1, 12),
        "clip_text": torch.randn(BATCH, TOKENS, 12),
        "clip_img": torch.randn(BATCH, 1, 12),
    }


@network("aMUSEd", "U-ViT over tokens", timestep="")
def amused() -> Built:
    model = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=12,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=12,
        vocab_size=32,
        codebook_size=24,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        sample_size=8,
    )
    return model, {
        "input_ids": torch.randint(0, 24, (BATCH, 8, 8)),
        "encoder_hidden_states": text(12),
        "pooled_text_emb": torch.randn(BATCH, 12),
        "micro_conds": torch.rand(BATCH, 5) * 8,
    }
