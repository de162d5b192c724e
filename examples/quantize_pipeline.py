"""Quantize the UNet of a Stable Diffusion pipeline, and draw with the result.

Without arguments it works on a tiny pipeline with random weights, made here, so it needs no download:

    python examples/quantize_pipeline.py
    python examples/quantize_pipeline.py --pipeline path/to/stable-diffusion --steps 25
"""

from __future__ import annotations

import argparse
import json
import string
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qdiff_fx import (
    QDiffConfig,
    calibrate,
    collect_calibration_data,
    convert_qdiff,
    prepare_qdiff,
    round_weights,
    save_qdiff,
)

PROMPTS = ["a fish", "a boat on a lake", "two birds", "the moon over a hill"]
TEXT_WIDTH, TOKENS = 32, 24
LETTERS = len(string.ascii_lowercase)


def tiny_pipeline() -> StableDiffusionPipeline:
    """The layout of Stable Diffusion, ten thousand times smaller, with random weights."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=TEXT_WIDTH,
            norm_num_groups=8,
        ).eval(),
        vae=AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4).eval(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        tokenizer=letter_tokenizer(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=2 * LETTERS + 2,
                bos_token_id=2 * LETTERS,
                eos_token_id=2 * LETTERS + 1,
                hidden_size=TEXT_WIDTH,
                intermediate_size=TEXT_WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
            )
        ).eval(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def letter_tokenizer() -> CLIPTokenizer:
    """A tokenizer that knows letters only."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        words, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps(vocabulary))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(words), str(merges), model_max_length=TOKENS)


def main() -> None:
    """W4A8 with the paper's calibration: every c-th step of the trajectory, both halves of the guidance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="a pipeline folder or hub id")
    parser.add_argument("--out", type=Path, default=Path("out/pipeline-w4a8"))
    parser.add_argument("--backend", default="native")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()

    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline) if args.pipeline else tiny_pipeline()
    data = collect_calibration_data(
        pipe,
        num_samples=len(PROMPTS),
        num_inference_steps=args.steps,
        seed=0,
        inputs={"prompt": PROMPTS},
    )

    prepared = prepare_qdiff(pipe.unet, QDiffConfig(weight_bits=4), data[0])
    calibrate(prepared, data)
    round_weights(prepared, data)
    pipe.unet = convert_qdiff(prepared, backend=args.backend)
    save_qdiff(pipe.unet, args.out)

    images = pipe(PROMPTS[:2], num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)).images
    for number, image in enumerate(images):
        image.save(args.out.with_name(f"{args.out.name}-{number}.png"))
    print(pipe.unet.explain())


if __name__ == "__main__":
    main()
