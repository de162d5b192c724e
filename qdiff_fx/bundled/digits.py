"""Loads the bundled class-conditional digits model and draws samples from it.

The files under `digits/` were written by `examples/train_digits.py` (default options): weights are
stored as float16 and loaded to float32, and nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from qdiff_fx.bundled.modules import DigitClassifier, DigitEmbedding
from qdiff_fx.bundled.pipeline import DEFAULT_GUIDANCE, DigitsPipeline

__all__ = [
    "DEFAULT_GUIDANCE",
    "DigitClassifier",
    "DigitEmbedding",
    "DigitsPipeline",
    "load_digit_classifier",
    "load_digits_embedding",
    "load_digits_pipeline",
    "load_digits_unet",
    "make_digits_scheduler",
    "sample_digits",
    "save_digits",
]

Loaded = TypeVar("Loaded", bound=nn.Module)

FOLDER = Path(__file__).parent / "digits"
UNET_CONFIG = "unet/config.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
EMBEDDING_CONFIG = "embedding/config.json"
EMBEDDING_WEIGHTS = "embedding/diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
CLASSIFIER_WEIGHTS = "classifier/model.safetensors"


def load_digits_unet(folder: Path = FOLDER) -> UNet2DConditionModel:
    """The UNet in float32 and eval mode: (B, 1, 32, 32), (B,), (B, 4, 64) -> sample (B, 1, 32, 32)."""
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(_read_json(folder / UNET_CONFIG))
    return _with_weights(unet, folder / UNET_WEIGHTS)


def load_digits_embedding(folder: Path = FOLDER) -> DigitEmbedding:
    """The class embedding: labels (B,) -> (B, 4, 64); label 10 is the null label."""
    embedding: DigitEmbedding = DigitEmbedding.from_config(_read_json(folder / EMBEDDING_CONFIG))
    return _with_weights(embedding, folder / EMBEDDING_WEIGHTS)


def make_digits_scheduler(steps: int = 25, folder: Path = FOLDER) -> DDIMScheduler:
    """A DDIM scheduler on the noise schedule of training, with its timesteps set.

    Pass `use_clipped_model_output=True` to its `step`, as the pipeline does: without it, guidance above about 1.5
    ends in other digits than those asked for.
    """
    scheduler: DDIMScheduler = DDIMScheduler.from_config(_read_json(folder / SCHEDULER_CONFIG))
    scheduler.set_timesteps(steps)
    return scheduler


def load_digit_classifier(folder: Path = FOLDER) -> DigitClassifier:
    """The judge of generated digits: images (B, 1, 32, 32) in [-1, 1] -> logits (B, 10)."""
    return _with_weights(DigitClassifier(), folder / CLASSIFIER_WEIGHTS)


def load_digits_pipeline(folder: Path = FOLDER) -> DigitsPipeline:
    """The whole model as a diffusers pipeline."""
    return DigitsPipeline(load_digits_unet(folder), load_digits_embedding(folder), make_digits_scheduler(folder=folder))


def sample_digits(
    unet: nn.Module,
    labels: torch.Tensor | Sequence[int],
    seed: int,
    steps: int = 25,
    guidance_scale: float = DEFAULT_GUIDANCE,
    folder: Path = FOLDER,
) -> torch.Tensor:
    """Images (B, 1, 32, 32) in [-1, 1], one per label, drawn by `unet` from the noise of `seed`.

    The starting noise is drawn on the CPU, so two networks given one seed start from the same noise anywhere.
    """
    pipe = DigitsPipeline(unet, load_digits_embedding(folder), make_digits_scheduler(steps, folder))
    parameter = next(unet.parameters(), None)
    if parameter is not None:
        pipe.embedding.to(parameter.device)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]  # diffusers' own
    generator = torch.Generator().manual_seed(seed)
    images: torch.Tensor
    (images,) = pipe(labels, steps, guidance_scale, generator, return_dict=False)
    return images


def save_digits(
    folder: Path,
    unet: UNet2DConditionModel,
    embedding: DigitEmbedding,
    scheduler: DDIMScheduler,
    classifier: DigitClassifier,
) -> None:
    """Write a folder that the loaders here read; floating-point weights are stored as float16."""
    unet.save_config(folder / "unet")
    embedding.save_config(folder / "embedding")
    scheduler.save_config(folder / "scheduler")
    _save_half(unet, folder / UNET_WEIGHTS)
    _save_half(embedding, folder / EMBEDDING_WEIGHTS)
    _save_half(classifier, folder / CLASSIFIER_WEIGHTS)


def _save_half(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = module.state_dict()
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file({key: value.contiguous() for key, value in half.items()}, path)


def _with_weights(module: Loaded, path: Path) -> Loaded:
    state = load_file(_existing(path))
    module.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return module.eval()


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_existing(path).read_text(encoding="utf-8"))
    return content


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"bundled digits file {path} is missing; reinstall qdiff_fx, or write the files anew with "
            "examples/train_digits.py"
        )
    return path
