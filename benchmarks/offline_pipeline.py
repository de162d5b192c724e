"""A Stable Diffusion pipeline of random weights, in a folder: something to quantize where nothing can be downloaded.

``python -m benchmarks.offline_pipeline sd15 build/sd15`` has the sizes of Stable Diffusion 1.5 in every part, and
``sd-tiny`` a thousandth of them. Its tokenizer knows letters only.
"""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.networks import get_network

LETTERS = len(string.ascii_lowercase)
LAYERS_OF_WIDTH = {768: 12, 1024: 23}
"""Of text encoders, by the width of the UNet's conditioning: CLIP ViT-L/14's and SD-Turbo's. Others have one."""
CHANNELS_OF_LATENTS = {64: (128, 256, 512, 512)}
"""Of decoders, by the size of their latents: Stable Diffusion's. Others have one level."""


def offline_pipeline(name: str) -> Any:
    """A pipeline around one of the networks that are measured.

    Raises:
        ValueError: there is no such network, or it is not guided by text.
    """
    network = get_network(name)
    if network.context_shape is None or network.added:
        raise ValueError(f"{name} is not a network of Stable Diffusion's kind")
    tokens, width = network.context_shape
    channels = CHANNELS_OF_LATENTS.get(network.sample_shape[1], (32,))
    torch.manual_seed(0)
    decoder: Any = AutoencoderKL(
        latent_channels=4,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2,
    )
    parts = {
        "unet": network.build(False),
        "vae": decoder.eval(),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "tokenizer": letter_tokenizer(tokens),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=2 * LETTERS + 2,
                bos_token_id=2 * LETTERS,
                eos_token_id=2 * LETTERS + 1,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=LAYERS_OF_WIDTH.get(width, 1),
                num_attention_heads=max(1, width // 64),
                max_position_embeddings=tokens,
            )
        ).eval(),
    }
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def letter_tokenizer(tokens: int) -> CLIPTokenizer:
    """A tokenizer of texts of so many tokens that knows letters only."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        words, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps(vocabulary))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(words), str(merges), model_max_length=tokens)


def main(
    network: Annotated[str, typer.Argument(metavar="NETWORK")], folder: Annotated[Path, typer.Argument(metavar="DIR")]
) -> None:
    """Write it."""
    offline_pipeline(network).save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
