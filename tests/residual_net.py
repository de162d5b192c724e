"""A network with every kind of unit, calibrated on a few samples over its schedule."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import torch
from tiny_graphs import Shortcut
from torch import nn

from qdiff_fx import PreparedUNet, QDiffConfig, ReconstructionConfig, calibrate, prepare_qdiff
from qdiff_fx.capture import CapturedGraph, capture

FAST_RANGES = {"weight_bits": 4, "weight_range": "max", "act_range": "minmax", "timestep_bins": 10}
"""Quantizers whose ranges take no search."""
QUICK = ReconstructionConfig(weight_steps=20, act_steps=8, batch_size=4, weight_rate=0.05, typical_loss=0.0)


class Residual(nn.Module):
    """Two convolutions around which the input is added again, as in a ResBlock."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(torch.nn.functional.silu(self.conv1(x)))


class Net(Shortcut):
    """A residual block, then the layers, the split shortcut and the attention of `tiny_graphs.Shortcut`."""

    def __init__(self, channels: int = 8):
        super().__init__(channels)
        self.block = Residual(3)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().forward(self.block(x), t)


def batches(count: int = 6, seed: int = 1, timesteps: tuple[float, ...] = (20.0, 500.0, 980.0)) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(2, 3, 8, 8, generator=generator), "t": torch.full((2,), timesteps[i % len(timesteps)])}
        for i in range(count)
    ]


@functools.cache
def captured() -> tuple[nn.Module, CapturedGraph]:
    torch.manual_seed(0)
    net = Net().eval()
    return net, capture(net, batches()[0])


def make_prepared(**config: Any) -> PreparedUNet:
    """The network prepared anew and calibrated; only its capture is shared."""
    net, graph = captured()
    with mock.patch("qdiff_fx.capture.capture", return_value=graph):
        network = prepare_qdiff(net, QDiffConfig(**(FAST_RANGES | config)), batches()[0])
    calibrate(network, batches(), progress=False)
    return network
