"""Small random parts that pipelines are put together from."""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel, VQModel
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.smallest import ONE_CROSS_ATTENTION

TEXT, TOKENS, SIZE = 32, 24, 16
"""Width of text embeddings, length of prompts, and height and width of the UNets' samples."""
FISH = {"prompt": ["a fish"], "output_type": "latent"}
SMALL = {"height": 2 * SIZE, "width": 2 * SIZE}
_LETTERS = len(string.ascii_lowercase)


def tokenizer() -> CLIPTokenizer:
    """Knows letters only."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        words, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps(vocabulary))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(words), str(merges), model_max_length=TOKENS)


def text_encoder(*, projection: bool = False, layers: int = 2) -> Any:
    """CLIP's, of width `TEXT`."""
    config = CLIPTextConfig(
        vocab_size=2 * _LETTERS + 2,
        bos_token_id=2 * _LETTERS,
        eos_token_id=2 * _LETTERS + 1,
        hidden_size=TEXT,
        intermediate_size=TEXT,
        projection_dim=TEXT,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def image_encoder(size: int = SIZE) -> CLIPVisionModelWithProjection:
    """CLIP's, to embeddings of width `TEXT`."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=TEXT,
            intermediate_size=TEXT,
            projection_dim=TEXT,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=size,
            patch_size=size // 2,
        )
    )


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size=SIZE, crop_size=SIZE)


def vae(**changes: Any) -> AutoencoderKL:
    """Halves images once."""
    blocks: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**({"latent_channels": 4, "norm_num_groups": 4} | blocks | changes))


def vq_model() -> VQModel:
    return VQModel(block_out_channels=(8,), latent_channels=3, num_vq_embeddings=16, norm_num_groups=4)


def unet(**changes: Any) -> UNet2DConditionModel:
    """Laid out like Stable Diffusion's: a resolution with cross-attention and one without."""
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | changes))


def one_cross_attention() -> UNet2DConditionModel:
    """The smallest that takes a prompt."""
    return unet(**ONE_CROSS_ATTENTION, mid_block_type=None)


def unet_xl(ids: int = 6, **changes: Any) -> UNet2DConditionModel:
    """Laid out like Stable Diffusion XL's."""
    return unet(
        **{
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "cross_attention_dim": 2 * TEXT,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": ids * 8 + TEXT,
        }
        | changes
    )


def unconditional(**changes: Any) -> UNet2DModel:
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DModel(**(settings | changes))


def ddim(**changes: Any) -> DDIMScheduler:
    settings: dict[str, Any] = {
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(settings | changes))


def picture(size: int = 2 * SIZE) -> Image.Image:
    """Always the same one."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tiny_pipeline(**changes: Any) -> StableDiffusionPipeline:
    """Stable Diffusion with one cross-attention, ready to draw; `changes` replace parts."""
    torch.manual_seed(0)
    return ready(StableDiffusionPipeline(**({"unet": one_cross_attention()} | stable_diffusion_parts() | changes)))


def ready(pipe: Any) -> Any:
    """In eval mode, without bars."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_parts() -> dict[str, Any]:
    """All but the UNet of Stable Diffusion 1."""
    return {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sdxl_parts() -> dict[str, Any]:
    """All but the UNet of Stable Diffusion XL."""
    return {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "text_encoder_2": text_encoder(projection=True),
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "scheduler": ddim(),
        "add_watermarker": False,
    }


def rows(*shape: int) -> torch.Tensor:
    """Random numbers that are the same in every drawing."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def embeddings(**more: Any) -> Callable[[], dict[str, Any]]:
    """Arguments of a drawing from a prompt that is embedded already: by a T5, too large to be made here."""
    return lambda: {"prompt_embeds": rows(1, TOKENS, TEXT), "output_type": "latent"} | more


def in_two_halves(mask: str = "attention_mask") -> dict[str, Any]:
    """What a guided pipeline wants of a text encoder's results."""
    ones = torch.ones(1, TOKENS, dtype=torch.long)
    negative = {"negative_prompt_embeds": rows(1, TOKENS, TEXT) / 2}
    return negative | {mask: ones, f"negative_{mask}": ones}
