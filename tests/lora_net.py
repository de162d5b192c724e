"""A network with every kind of layer that a LoRA changes, LoRAs for it, and how near two networks are."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A convolution, a convolution over a concatenation, and a linear layer, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.joined = nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.last = nn.Linear(8, 8)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.first(sample)
        h = self.joined(torch.cat([h, torch.tanh(h)], dim=1))
        h = h + self.last(h.movedim(1, 3)).movedim(3, 1)
        return self.out(h) + timestep[:, None, None, None] / 1000


BATCHES = [
    {"sample": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(t)), "timestep": torch.full((2,), t)}
    for t in (900, 500, 20)
]


def lora(seed: int = 0, size: float = 0.1) -> dict[str, Tensor]:
    """Matrices for every kind of layer there is."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": ((2, 3, 3, 3), (8, 2, 1, 1)), "joined": ((3, 16, 3, 3), (8, 3, 1, 1)), "last": ((2, 8), (8, 2))}
    return {
        f"unet.{path}.lora_{side}.weight": torch.randn(shape, generator=generator) * size
        for path, both in shapes.items()
        for side, shape in zip("AB", both, strict=True)
    }


def fused(network: Net, tensors: dict[str, Tensor], weight: float = 1.0) -> Net:
    """The float network with the same added to its weights."""
    twin = copy.deepcopy(network)
    for path in ("first", "joined", "last"):
        down, up = (tensors[f"unet.{path}.lora_{side}.weight"] for side in "AB")
        layer = twin.get_submodule(path).weight
        layer.data += weight * (up.flatten(1) @ down.flatten(1)).view_as(layer)
    return twin


def outputs(network: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(**batch) for batch in BATCHES])


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))
