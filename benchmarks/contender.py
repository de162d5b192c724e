"""What a way of running a network has to offer to be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.networks import Network

Batch = Mapping[str, Any]
Predict = Callable[..., torch.Tensor]


class Contender(Protocol):
    """One way to run a network: prepared once, then loaded by the process that is timed."""

    @property
    def artifact(self) -> str:
        """Name of the folder that `prepare` writes and `load` reads; empty when nothing has to be prepared."""

    def prepare(self, unet: nn.Module, network: Network, batches: Iterable[Batch], folder: Path) -> None:
        """Quantize or convert `unet` into `folder`, which is there and empty, calibrating on `batches`."""

    def load(self, network: Network, folder: Path) -> Predict:
        """What is timed: called like the network, ``(sample, timestep, **conditioning)``, returns a tensor."""
