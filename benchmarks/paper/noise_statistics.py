"""What is systematic in the error of a prediction, taken out at every step (He et al. 2023, PTQD)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qdiff_fx import QuantizedUNet
from qdiff_fx.evaluation import Trajectory, predict
from qdiff_fx.sampling import prediction_of


@torch.no_grad()
def error_statistics(network: QuantizedUNet, walk: Trajectory) -> dict[float, tuple[Tensor, Tensor]]:
    """timestep → what part of the float prediction the error repeats, and the mean of the rest in every channel."""
    found = {}
    for step in walk.steps:
        error = predict(network, step.sample, step.timestep, **walk.conditioning) - step.eps
        means = [each.mean((0, 2, 3), keepdim=True) for each in (error, step.eps)]
        error, eps = error - means[0], step.eps - means[1]
        repeated = (error * eps).sum() / eps.square().sum()
        found[_time(step.timestep)] = (repeated, means[0] - repeated * means[1])
    return found


def corrected(network: QuantizedUNet, statistics: dict[float, tuple[Tensor, Tensor]]) -> Any:
    """Take both out of every prediction from now on, in place; returns the handle that ends it."""

    def correct(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        eps = prediction_of(output)
        timestep = network.flatten_inputs(args, kwargs)[1]
        repeated, mean = statistics[_time(timestep)]
        eps.sub_(mean).div_(1 + repeated)

    return network.register_forward_hook(correct, with_kwargs=True)


def _time(timestep: Any) -> float:
    return float(torch.as_tensor(timestep).reshape(-1)[0])
