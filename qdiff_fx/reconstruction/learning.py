"""Learning one unit's rounding, then its step sizes, on mini-batches of cached activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.data import Samples
from qdiff_fx.reconstruction.stage import Stage

LOOK_EVERY = 25
"""Steps between two looks at whether to stop."""
STALLED = 0.002
"""A step-size phase stops when its smoothed loss fell by less than this share since the last two looks."""

Objective = Callable[[Tensor], Tensor]


class Batches:
    """Random mini-batches with their timesteps spread evenly: one sample from each of B equal parts of the schedule.

    Args:
        size: B.
        seed: of the draw.
    """

    def __init__(self, samples: Samples, size: int, seed: int):
        self._order, self._size = samples.by_timestep, size
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        """int64 [B]."""
        within = torch.rand(self._size, generator=self._generator, dtype=torch.float64)
        places = (torch.arange(self._size) + within) * (len(self._order) / self._size)
        return self._order[places.long().clamp(max=len(self._order) - 1)]


def learn_weights(stage: Stage, config: ReconstructionConfig, steps: int, loss: Objective, batches: Batches) -> None:
    """AdaRound on every weight of the unit, split parts included, and Adam on its biases.

    Args:
        loss: the unit's loss on some samples, about 1 where it starts.
    """
    dtype = torch.bfloat16 if config.in_bfloat16 else torch.float32
    learners = [each.begin(config.head_start, dtype) for each in stage.roundings.values()]
    biases = [each.decided.requires_grad_() for each in stage.biases.values()]
    optimizer = torch.optim.Adam(biases, lr=config.bias_rate) if biases else None
    warm_up = int(config.warm_up * steps)
    for step in range(steps):
        loss(batches.draw()).backward()
        pull, beta = 0.0, 2.0
        if step >= warm_up:
            pull, beta = config.regularisation, annealed(config.beta, (step - warm_up) / (steps - warm_up))
        rate = config.weight_rate * (1 + (config.rate_growth - 1) * step / steps)
        for learner in learners:
            learner.step(rate, pull, beta)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step > warm_up and step % LOOK_EVERY == 0 and all(each.settled() for each in learners):
            break
    for rounding in stage.roundings.values():
        rounding.finish()
    for bias in biases:
        bias.requires_grad_(False)


def moved_by_activations(stage: Stage, config: ReconstructionConfig) -> list[object]:
    """The modules that `learn_activations` changes."""
    learned: list[object] = list(stage.activations.values())
    return [*learned, *stage.roundings.values(), *stage.biases.values()] if config.scale_rate else learned


def learn_activations(
    stage: Stage, config: ReconstructionConfig, steps: int, loss: Objective, batches: Batches
) -> None:
    """LSQ: Adam on the logarithm of the unit's step sizes; zero-points stay (Q-Diffusion, section 4.3).

    And, beside what the paper learns, on that of its weights' scales, and on its biases: codes stay.
    """
    factors = [each.log_factor.requires_grad_() for each in stage.activations.values()]
    groups: list[dict[str, Any]] = [{"params": factors, "lr": config.act_rate}]
    if config.scale_rate:
        scales = [each.log_factor.requires_grad_() for each in stage.roundings.values()]
        biases = [each.decided.requires_grad_() for each in stage.biases.values()]
        groups += [{"params": scales, "lr": config.scale_rate}, {"params": biases, "lr": config.bias_rate}]
        factors = [*factors, *scales, *biases]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    smooth, looks = math.nan, [math.inf, math.inf]
    for step in range(steps):
        value = loss(batches.draw())
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        decay.step()
        now = float(value.detach())
        smooth = now if step == 0 else 0.95 * smooth + 0.05 * now
        if step % LOOK_EVERY == LOOK_EVERY - 1:
            if smooth > looks[-2] * (1 - STALLED):
                break
            looks.append(smooth)
    for factor in factors:
        factor.requires_grad_(False)


def annealed(ends: tuple[float, float], progress: float) -> float:
    """β along a half cosine from the first to the second end."""
    start, end = ends
    return end + (start - end) * 0.5 * (1 + math.cos(progress * math.pi))
