"""Which images to draw, and the noise each starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from qdiff_fx.errors import ConfigError
from qdiff_fx.schedule import Schedule

# Seeds of neighbouring runs must not share generators.
SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class SampleRequest:
    """A run of images from a series.

    Image number ``i`` starts from noise that depends on ``seed`` and ``i`` alone, whatever batch it is drawn in.

    Attributes:
        count: how many.
        steps: denoising steps.
        seed: which series.
        first: number of the first image within the series.
        schedule: the steps themselves, in place of the sampler's own.
        guidance_until: the share of the steps that are guided, where the pipeline guides.
    """

    count: int
    steps: int
    seed: int = 0
    first: int = 0
    schedule: Schedule | None = None
    guidance_until: float = 1.0

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)} is not a positive number", where=name)
        if self.schedule is not None and len(self.schedule) != self.steps:
            raise ConfigError(f"the schedule has {len(self.schedule)} steps, not {self.steps}", where="steps")

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)

    def generators(self) -> list[torch.Generator]:
        """The source of noise of each image."""
        return [torch.Generator().manual_seed(self.seed * SEED_STRIDE + number) for number in self.numbers]

    def batches(self, size: int) -> list[SampleRequest]:
        """The same images in batches; the last one may be smaller."""
        if size < 1:
            raise ConfigError(f"{size} is not a positive number", where="batch_size")
        starts = range(0, self.count, size)
        return [replace(self, count=min(size, self.count - at), first=self.first + at) for at in starts]
