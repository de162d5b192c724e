"""Let several networks draw the same images, and time and judge them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

from qdiff_fx.sources import SampleRequest, Source


@dataclass(frozen=True)
class Run:
    """What one network drew (N, C, H, W), and the median over batches of the seconds an image took."""

    images: torch.Tensor
    seconds_per_image: float


def draw_in_turn(
    source: Source, networks: Mapping[str, nn.Module], batches: Sequence[SampleRequest], *, progress: bool
) -> dict[str, Run]:
    """The same images from every network, batch by batch in turn, so that all meet the same machine.

    The first batch is drawn twice: what compiling and warming up take is not timed.
    """
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in networks}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        source.sample(network, batches[0])
    for batch in tqdm(batches, desc="batches", disable=not progress, leave=False):
        for name, network in networks.items():
            start = time.perf_counter()
            drawn[name].append(source.sample(network, batch))
            seconds[name].append((time.perf_counter() - start) / batch.count)
    return {name: Run(torch.cat(drawn[name]), median(seconds[name])) for name in networks}


@torch.no_grad()
def accuracy(images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images (N, 1, 32, 32) the bundled classifier takes for the digit they were to show."""
    from qdiff_fx.bundled.digits import load_digit_classifier  # brings all of diffusers

    return int((load_digit_classifier()(images).argmax(1) == labels).sum()) / len(labels)
