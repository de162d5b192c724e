"""The networks golden results are taken of, each with its calibration data and fixed inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from zoo import ARCHITECTURES, resized

from benchmarks.networks import shared_module
from qdiff_fx import CalibrationData, collect_calibration_data
from qdiff_fx.bundled.digits import DEFAULT_GUIDANCE, load_digits_pipeline

Inputs = Mapping[str, Any]
SAMPLES, STEPS = 2, 4
TIMESTEPS = ("timestep", "timesteps", "t")
LATER = 411  # timesteps: another bin than the example's


class Unavailable(Exception):
    """The network is not on this machine; the text says where it was looked for."""


@dataclass(frozen=True)
class Subject:
    """A float network in eval mode, the batches it is calibrated on, and the calls whose results count, by name."""

    model: nn.Module
    calibration: list[Inputs]
    calls: dict[str, Inputs]


@functools.cache
def digits() -> Subject:
    """The bundled network, calibrated on guided samples."""
    pipeline = load_digits_pipeline()
    data = collect_calibration_data(
        pipeline,
        num_samples=SAMPLES,
        num_inference_steps=STEPS,
        batch_size=SAMPLES,
        seed=0,
        inputs={"labels": [3, 8]},
        guidance_scale=DEFAULT_GUIDANCE,
        progress=False,
    )
    with torch.no_grad():
        context = pipeline.embedding(torch.tensor([7, 2]))
    return Subject(pipeline.unet, _batches(data), _calls((1, 32, 32), 1000, encoder_hidden_states=context))


@functools.cache
def anime() -> Subject:
    """The trained 63 M network beside the checkout; raises Unavailable where it is absent."""
    try:
        module = shared_module("anime-ddpm-64")
    except FileNotFoundError as error:
        raise Unavailable(str(error)) from error
    unet, scheduler = module.load_unet(), module.make_scheduler(STEPS)
    data = collect_calibration_data(
        unet,
        scheduler=scheduler,
        num_samples=SAMPLES,
        num_inference_steps=STEPS,
        batch_size=SAMPLES,
        seed=0,
        progress=False,
    )
    return Subject(unet, _batches(data), _calls((3, 64, 64), scheduler.config.num_train_timesteps))


def random_network(name: str) -> Callable[[], Subject]:
    """Loads one network of the zoo, calibrated on its example inputs and on other noise at another timestep."""

    def load() -> Subject:
        torch.manual_seed(0)
        model, example = ARCHITECTURES[name]()
        later = _later(resized(example, 2))
        calls = {"example": example, "later": _later(resized(example, 2)), "single": resized(example, 1)}
        return Subject(model, [example, later], calls)

    return load


def _batches(data: CalibrationData) -> list[Inputs]:
    return [data[index] for index in range(len(data))]


def _calls(shape: tuple[int, ...], schedule: int, **conditioning: torch.Tensor) -> dict[str, Inputs]:
    """Early, middle and late timesteps, batches of 1 and 2, and a batch whose rows are at different timesteps."""
    generator = torch.Generator().manual_seed(1)
    calls: dict[str, Inputs] = {}
    for fractions in ((0.02,), (0.5, 0.5), (0.97,), (0.97, 0.02)):
        timesteps = [int(fraction * schedule) for fraction in fractions]
        batch = len(timesteps)
        calls[f"t={','.join(map(str, timesteps))}"] = {
            "sample": torch.randn(batch, *shape, generator=generator),
            "timestep": torch.tensor(timesteps),
            **{name: tensor[:batch] for name, tensor in conditioning.items()},
        }
    return calls


def _later(inputs: Inputs) -> dict[str, Any]:
    return {name: value + LATER if name in TIMESTEPS else value for name, value in inputs.items()}
