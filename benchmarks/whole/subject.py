"""The pipelines whose images are timed: the bundled digits, and Stable Diffusion's kind with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TEXT_ENCODER, UNET, DECODER = "text encoder", "UNet", "decoder"


@dataclass(frozen=True)
class Subject:
    """A pipeline, and one image of it.

    Attributes:
        asked: what is drawn: arguments of the pipeline.
        parts: its networks by what they are here, each at its place in the pipeline ("vae.decoder").
        steps, guidance: where nobody says.
        trained: whether its weights are.
    """

    name: str
    asked: Mapping[str, Any]
    parts: Mapping[str, str]
    steps: int
    guidance: float
    trained: bool = False

    def write(self, folder: Path) -> None:
        """Write what `load` reads into a folder that is there and empty."""
        raise NotImplementedError

    def load(self, folder: Path, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
        """The pipeline, with these components in the place of those in the folder."""
        raise NotImplementedError

    def assembled(self, folder: Path, components: Mapping[str, Any]) -> Any:
        """The pipeline with networks that are no classes of diffusers' or transformers'."""
        return self.load(folder, **components)

    def arguments(self, steps: int, guidance: float, seed: int = 0) -> dict[str, Any]:
        """Of one call that draws one image."""
        generator = torch.Generator().manual_seed(seed)
        return {**self.asked, "num_inference_steps": steps, "guidance_scale": guidance, "generator": generator}


class StableDiffusion(Subject):
    """One of Stable Diffusion's kind, by the network of that name."""

    def write(self, folder: Path) -> None:
        from benchmarks.offline_pipeline import offline_pipeline

        offline_pipeline(self.name).save_pretrained(folder)

    def load(self, folder: Path, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **components)

    def assembled(self, folder: Path, components: Mapping[str, Any]) -> Any:
        # `from_pretrained` asks for classes, a pipeline itself does not.
        without: dict[str, Any] = dict.fromkeys(components)
        rest = self.load(folder, **without)
        return type(rest)(**{**rest.components, **components})


class Digits(Subject):
    """The bundled model, which needs no folder."""

    def write(self, folder: Path) -> None:
        pass

    def load(self, folder: Path, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
        from qdiff_fx.bundled.digits import load_digits_embedding, load_digits_unet, make_digits_scheduler
        from qdiff_fx.bundled.pipeline import DigitsPipeline

        unet: Any = components.get(self.parts[UNET]) or load_digits_unet()
        pipe: Any = DigitsPipeline(unet, load_digits_embedding(), make_digits_scheduler())
        return pipe.to(dtype)


PARTS = {TEXT_ENCODER: "text_encoder", UNET: "unet", DECODER: "vae.decoder"}
PROMPT = {"prompt": "a boat on a lake"}
SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Digits("digits", {"labels": [3]}, {UNET: "unet"}, 25, 2.5, trained=True),
        StableDiffusion("sd-tiny", PROMPT, PARTS, 20, 7.5),
        StableDiffusion("sd15", PROMPT, PARTS, 20, 7.5),
        StableDiffusion("sd-turbo", PROMPT, PARTS, 1, 0.0),
    )
}


def get_subject(name: str) -> Subject:
    """The pipeline of that name; raises ValueError with the known names."""
    if name not in SUBJECTS:
        raise ValueError(f"unknown pipeline {name!r}; known: {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def network_at(pipe: Any, place: str) -> Any:
    """The network at a place in a pipeline: "unet", "vae.decoder"."""
    for name in place.split("."):
        pipe = getattr(pipe, name)
    return pipe
