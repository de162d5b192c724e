"""Watch the calls a network gets while somebody else's loop drives it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qdiff_fx.evaluation import Step, Trajectory
from qdiff_fx.evaluation.denoising import prediction_of


@dataclass(frozen=True)
class Call:
    """One call: its arguments by the names ``forward`` gives them, in that order, and the prediction."""

    inputs: dict[str, Any]
    prediction: torch.Tensor


@contextmanager
def recording(unet: nn.Module, limit: int | None = None, like: nn.Module | None = None) -> Iterator[list[Call]]:
    """Every call (or the first ``limit``) made to ``unet`` inside the ``with`` block, in order.

    Args:
        like: the network whose ``forward`` names the arguments, where ``unet`` stands in for another.
    """
    signature = inspect.signature((like or unet).forward)
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if limit is None or len(calls) < limit:
            bound = signature.bind(*args, **kwargs).arguments
            calls.append(Call(_kept(bound), prediction_of(output)))

    handle = unet.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def as_trajectory(calls: list[Call], final: torch.Tensor) -> Trajectory:
    """A recorded sampler run as a `Trajectory`; the first two arguments of a diffusion network are x_t and t."""
    steps = []
    for call in calls:
        sample, timestep, *_ = call.inputs.values()
        steps.append(Step(sample, timestep, call.prediction))
    conditioning = dict(list(calls[0].inputs.items())[2:])
    return Trajectory(steps, final, conditioning)


def _kept(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing about the computation."""
    return {name: value for name, value in arguments.items() if name != "return_dict" and value is not None}
