"""How close a quantized network stays to the float one, on images that several processes may share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.evaluation import images_psnr_db, predict
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.sampling import Trajectory
from qdiff_fx.sources import SampleRequest, Source

REFERENCE = "reference"
Powers = list[tuple[float, float]]
"""Of a signal and of the noise on it, at every step."""


@dataclass(frozen=True)
class Fidelity:
    """Signal-to-noise ratios in dB.

    Attributes:
        timesteps: of the steps.
        eps: backend → SQNR of its prediction at every step of the float trajectory, over all images.
        agreement: SQNR of the backend against the reference backend at every step.
        images: PSNR of the backend's own final images against the float ones, their mean.
    """

    timesteps: list[float]
    eps: dict[str, list[float]]
    agreement: list[float]
    images: float


def compare(
    quantized: QuantizedUNet,
    origin: Source,
    request: SampleRequest,
    *,
    note: Callable[[str], None] = lambda line: None,
    workers: Workers = ALONE,
) -> Fidelity:
    """Run the quantized network on the float network's inputs, then let it denoise by itself.

    Args:
        note: is told what is being done.
        workers: processes that share the images; all get the same.
    """
    own = workers.stretch(request.numbers)
    with workers.together():
        found = _measured(quantized, origin, request, own, note) if own else None
        parts = [part for part, _ in workers.gather(found) if part is not None]
    names = parts[0]["eps"]
    return Fidelity(
        parts[0]["timesteps"],
        {name: _decibels([part["eps"][name] for part in parts]) for name in names},
        _decibels([part["agreement"] for part in parts]),
        fmean(each for part in parts for each in part["images"]),
    )


def _measured(
    quantized: QuantizedUNet, origin: Source, request: SampleRequest, own: Sequence[int], note: Callable[[str], None]
) -> dict[str, Any]:
    """Of some of the images, in what JSON can hold."""
    some = replace(request, count=len(own), first=own[0])
    note(f"denoising {request.count} images in {request.steps} steps with the float network")
    trajectory = origin.trajectory(some)
    predictions = {}
    for name in dict.fromkeys((quantized.backend, REFERENCE)):
        note(f"predicting with the {name} backend")
        network = quantized if name == quantized.backend else quantized.with_backend(name)
        predictions[name] = _predictions(network, trajectory)
    signals = [step.eps for step in trajectory.steps]
    note(f"denoising with the {quantized.backend} backend")
    images = origin.sample(quantized, some)
    return {
        "timesteps": [float(torch.as_tensor(step.timestep).reshape(-1)[0]) for step in trajectory.steps],
        "eps": {name: _powers(signals, actual) for name, actual in predictions.items()},
        "agreement": _powers(predictions[REFERENCE], predictions[quantized.backend]),
        "images": images_psnr_db(images, trajectory.final).tolist(),
    }


@torch.no_grad()
def _predictions(network: QuantizedUNet, trajectory: Trajectory) -> list[Tensor]:
    return [predict(network, step.sample, step.timestep, **trajectory.conditioning) for step in trajectory.steps]


def _powers(signals: Sequence[Tensor], actual: Sequence[Tensor]) -> Powers:
    return [
        (float(one.double().square().sum()), float((other.double() - one.double()).square().sum()))
        for one, other in zip(signals, actual, strict=True)
    ]


def _decibels(parts: Sequence[Powers]) -> list[float]:
    """Of each step, over all parts."""
    steps = zip(*parts, strict=True)
    return [_ratio_db(*(math.fsum(each) for each in zip(*step, strict=True))) for step in steps]


def _ratio_db(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
