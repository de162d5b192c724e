"""A diffusers pipeline: a local folder, or a repository on the hub."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qdiff_fx.sources.base import Draw, Source, SourceError


class PipelineSource(Source):
    """Draws with any diffusers pipeline that has a ``unet`` and takes prompts or a batch size.

    Args:
        identifier: what the pipeline was loaded from.
        pipe: the pipeline.
        prompts: given to the images in turn; without any, the empty prompt.
    """

    def __init__(self, identifier: str, pipe: Any, prompts: Sequence[str] = ()):
        self.identifier, self.pipe, self.prompts = identifier, pipe, tuple(prompts) or ("",)
        if not isinstance(getattr(pipe, "unet", None), nn.Module):
            raise SourceError("the pipeline has no unet", where=identifier, fix="Only UNets are quantized")
        self.unet = pipe.unet.eval()
        self.num_train_timesteps = pipe.scheduler.config.num_train_timesteps
        self._takes = inspect.signature(type(pipe).__call__).parameters

    @torch.no_grad()
    def sample(self, unet: nn.Module, draw: Draw) -> torch.Tensor:
        self.pipe.set_progress_bar_config(disable=not self.progress, leave=False, desc="denoise")
        before = self.pipe.unet
        self.pipe.unet = unet
        try:
            images = self._call(draw)
        finally:
            self.pipe.unet = before
        return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) * 2 - 1

    def _call(self, draw: Draw) -> np.ndarray:
        """Images (N, H, W, C) in [0, 1]."""
        given = {"num_inference_steps": draw.steps, "generator": draw.generators(), "output_type": "np"}
        arguments = {name: value for name, value in given.items() if name in self._takes}
        return self.pipe(**arguments, **self._subjects(draw)).images

    def _subjects(self, draw: Draw) -> dict[str, Any]:
        """The arguments that say what to draw, and how many."""
        if "prompt" in self._takes:
            return {"prompt": [self.prompts[number % len(self.prompts)] for number in draw.numbers]}
        if "batch_size" in self._takes:
            return {"batch_size": draw.count}
        raise SourceError(
            f"{type(self.pipe).__name__} takes neither prompts nor a batch size",
            where=self.identifier,
            fix="Write a Python file with load_unet() and make_scheduler(steps) instead",
        )


def load_pipeline(identifier: str, prompts: Sequence[str] = ()) -> PipelineSource:
    """The source of a pipeline folder or hub repository.

    Raises:
        SourceError: it cannot be loaded, or has no UNet.
    """
    # Slow to import, and only needed here.
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(identifier)
    except Exception as error:
        raise SourceError(f"the pipeline cannot be loaded ({_first_line(error)})", where=identifier) from error
    return PipelineSource(_absolute(identifier), pipe, prompts)


def _absolute(identifier: str) -> str:
    path = Path(identifier)
    return str(path.resolve()) if path.exists() else identifier


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
