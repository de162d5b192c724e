"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """``ε = ε_u + scale * (ε_c - ε_u)``, both halves computed in one doubled batch, the unconditional one first.

    Conditioning tensors are then given with both halves.

    Attributes:
        scale: None computes the one prediction there is.
    """

    scale: float | None = None

    @staticmethod
    def above_one(scale: float) -> Guidance:
        """As diffusers pipelines read it: 1 or less is no guidance."""
        return Guidance(scale if scale > 1 else None)

    @property
    def halves(self) -> int:
        """Rows that the network gets per sample."""
        return 1 if self.scale is None else 2

    def doubled(self, sample: Tensor) -> Tensor:
        """[N, ...] -> what the network gets, [halves * N, ...]."""
        return sample if self.scale is None else torch.cat([sample, sample])

    def combined(self, predicted: Tensor) -> Tensor:
        """What the network predicts, [halves * N, ...] -> [N, ...]."""
        if self.scale is None:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


UNGUIDED = Guidance()
