"""A float network together with all it takes to draw images with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qdiff_fx.errors import ConfigError, QDiffError
from qdiff_fx.evaluation import Trajectory
from qdiff_fx.sources.recording import as_trajectory, recording

# Seeds of neighbouring runs must not share generators.
SEED_STRIDE = 1_000_003


class SourceError(QDiffError):
    """A SOURCE that cannot be found, loaded or run."""


@dataclass(frozen=True)
class Draw:
    """Which images to draw.

    Image number ``i`` starts from noise that depends on ``seed`` and ``i`` alone, whatever batch it is drawn in.

    Attributes:
        count: how many.
        steps: denoising steps.
        seed: which series of images.
        first: number of the first image within the series.
    """

    count: int
    steps: int
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)} is not a positive number", where=name)

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)

    def generators(self) -> list[torch.Generator]:
        """The source of noise of each image."""
        return [torch.Generator().manual_seed(self.seed * SEED_STRIDE + number) for number in self.numbers]

    def batches(self, size: int) -> list[Draw]:
        """The same images in batches; the last one may be smaller."""
        if size < 1:
            raise ConfigError(f"{size} is not a positive number", where="batch_size")
        starts = range(0, self.count, size)
        return [Draw(min(size, self.count - at), self.steps, self.seed, self.first + at) for at in starts]


class Source(ABC):
    """Where a network comes from and how it is sampled.

    Attributes:
        identifier: what `resolve` turns into this source again; saved networks record it.
        unet: the float network, in eval mode.
        num_train_timesteps: length of its training schedule.
        progress: show a bar for every trajectory.
    """

    identifier: str
    unet: nn.Module
    num_train_timesteps: int
    progress: bool = False

    @abstractmethod
    def sample(self, unet: nn.Module, draw: Draw) -> torch.Tensor:
        """Images (N, C, H, W) in [-1, 1], denoised by ``unet``, which is called as this source's own network is."""

    def labels(self, draw: Draw) -> torch.Tensor | None:
        """The class (N,) each image is asked to show; ``None`` where classes mean nothing."""
        return None

    def trajectory(self, draw: Draw) -> Trajectory:
        """Denoise with the float network and keep every call it gets."""
        with recording(self.unet) as calls:
            final = self.sample(self.unet, draw)
        if not calls:
            raise SourceError("its sampler never called the network", where=self.identifier)
        return as_trajectory(calls, final)

    def example_inputs(self, count: int = 2) -> dict[str, Any]:
        """``forward`` arguments of one call of the network, for ``count`` images."""
        with recording(self.unet, limit=1) as calls:
            self.sample(self.unet, Draw(count, steps=2))
        return calls[0].inputs
