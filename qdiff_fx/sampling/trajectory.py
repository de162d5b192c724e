"""What is remembered of a denoising run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """One call of the network: ``eps = unet(sample, timestep)``; sample and eps are (B, C, H, W).

    With guidance that is the doubled batch, which is what the network really computes.
    """

    sample: Tensor
    timestep: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Trajectory:
    """Every call made while denoising one batch, in order, and the images (N, C, H, W) it ended in.

    Attributes:
        names: what the network's `forward` calls the sample and the timestep.
    """

    steps: list[Step]
    final: Tensor
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, str] = ("sample", "timestep")

    def batches(self) -> Iterator[dict[str, Any]]:
        """The network's inputs, one mapping of `forward` arguments per step: calibration data."""
        sample, timestep = self.names
        for step in self.steps:
            yield {sample: step.sample, timestep: step.timestep, **self.conditioning}
