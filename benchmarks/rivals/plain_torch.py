"""The network as it is: eager or compiled, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contender import Batch, Predict
from benchmarks.networks import Network


@dataclass(frozen=True)
class PlainTorch:
    """Eager torch, or `torch.compile`."""

    dtype: torch.dtype = torch.float32
    compiled: bool = False

    @property
    def artifact(self) -> str:
        return ""

    def prepare(self, unet: nn.Module, network: Network, batches: Iterable[Batch], folder: Path) -> None:
        raise NotImplementedError("plain torch has nothing to prepare")

    def load(self, network: Network, folder: Path) -> Predict:
        unet: Any = network.build(False).to(self.dtype)
        run = torch.compile(unet) if self.compiled else unet

        def step(sample: torch.Tensor, timestep: Any = None, **conditioning: torch.Tensor) -> torch.Tensor:
            cast = {name: tensor.to(self.dtype) for name, tensor in conditioning.items()}
            return network.predict(run, sample.to(self.dtype), timestep, **cast).float()

        return step


PLAIN_TORCH = {
    "torch-fp32": PlainTorch(),
    "torch-bf16": PlainTorch(torch.bfloat16),
    "torch-compile": PlainTorch(compiled=True),
    "torch-compile-bf16": PlainTorch(torch.bfloat16, compiled=True),
}
