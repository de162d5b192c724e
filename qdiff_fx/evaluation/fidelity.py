"""Signal-to-noise ratios between a float network and its quantized counterpart.

SQNR compares predictions made from the *same* inputs, so errors do not accumulate; PSNR compares final images
from the same noise, where they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from qdiff_fx.errors import InputError
from qdiff_fx.sampling import Trajectory, predict


def sqnr_db(reference: torch.Tensor, actual: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio ``10 log10(Σ r² / Σ (a − r)²)`` over whole tensors, in dB.

    Infinite when the tensors are equal. Raises InputError when their shapes differ.
    """
    _check_same_shape(reference, actual)
    signal = reference.double()
    noise = (actual.double() - signal).square().sum()
    if noise == 0:
        return math.inf
    return float(10 * torch.log10(signal.square().sum() / noise))


@torch.no_grad()
def eps_sqnr(quantized: Callable[..., Any], trajectory: Trajectory, *, progress: bool = False) -> list[float]:
    """SQNR in dB of `quantized`'s prediction at every step of a float network's trajectory, in order."""
    return [
        sqnr_db(step.eps, predict(quantized, step.sample, step.timestep, **trajectory.conditioning))
        for step in tqdm(trajectory.steps, desc="eps SQNR", leave=False, disable=not progress)
    ]


def images_psnr_db(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB: (N, C, H, W) twice, in [-1, 1] -> float64 (N,).

    Images are clamped and brought to [0, 1], so the peak is 1. Infinite for equal images. Raises InputError
    when the shapes differ.
    """
    _check_same_shape(reference, images)
    error = (_to_unit(images) - _to_unit(reference)).square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def psnr_db(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over the batch of `images_psnr_db`."""
    return float(images_psnr_db(images, reference).mean())


def _to_unit(images: torch.Tensor) -> torch.Tensor:
    return (images.double() / 2 + 0.5).clamp(0, 1)


def _check_same_shape(reference: torch.Tensor, actual: torch.Tensor) -> None:
    if reference.shape != actual.shape:
        raise InputError(
            f"shapes {tuple(actual.shape)} and {tuple(reference.shape)} differ",
            where="comparison",
            fix="Give both networks the same batch",
        )
