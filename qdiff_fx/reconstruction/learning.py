"""Learning one unit's rounding, then its step sizes, on mini-batches of cached activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.stage import Stage

EVALUATED = 64
"""Samples that a unit's loss is measured on before and after, evenly over the timesteps."""


class Batches:
    """Random mini-batches with their timesteps spread evenly: one sample from each of B equal parts of the schedule.

    Args:
        by_timestep: the N sample numbers sorted by timestep.
        size: B.
        seed: of the draw.
    """

    def __init__(self, by_timestep: Tensor, size: int, seed: int):
        self._order, self._size = by_timestep, min(size, len(by_timestep))
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        """int64 [B]."""
        edges = torch.arange(self._size, dtype=torch.float64) + torch.rand(
            self._size, generator=self._generator, dtype=torch.float64
        )
        return self._order[(edges * (len(self._order) / self._size)).long().clamp(max=len(self._order) - 1)]


def evaluation_rows(by_timestep: Tensor) -> Tensor:
    """The samples a unit's loss is measured on."""
    count = min(EVALUATED, len(by_timestep))
    return by_timestep[(torch.arange(count) * (len(by_timestep) / count)).long()]


@torch.no_grad()
def unit_loss(stage: Stage, rows: Tensor, chunk: int) -> float:
    """Mean squared error of the unit's output over the samples `rows`, relative to the output's mean square."""
    error = power = 0.0
    for part in rows.split(chunk):
        target = stage.target(part)
        error += float((stage.run(part) - target).square().sum())
        power += float(target.square().sum())
    return error / max(power, 1e-30)


def learn_weights(stage: Stage, config: ReconstructionConfig, batches: Batches) -> None:
    """AdaRound on every weight of the unit, split parts included, and Adam on its biases."""
    if not stage.roundings or not config.weight_steps:
        return
    rounding = [each.begin() for each in stage.roundings.values()]
    biases = [each.decided.requires_grad_() for each in stage.biases.values()]
    optimizer = torch.optim.Adam(
        [
            {"params": rounding, "lr": config.weight_rate},
            {"params": biases, "lr": config.bias_rate},
        ],
        fused=True,
    )
    warm_up = int(config.warm_up * config.weight_steps)
    for step in range(config.weight_steps):
        rows = batches.draw()
        target = stage.target(rows)
        # Summed over channels, averaged over the rest: the scale that λ is meant for.
        loss = (stage.run(rows) - target).square().sum(1).mean()
        if step >= warm_up:
            beta = annealed(config.beta, (step - warm_up) / max(1, config.weight_steps - warm_up))
            penalties = [each.regulariser(beta) for each in stage.roundings.values()]
            loss = loss + config.regularisation * torch.stack(penalties).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for each in stage.roundings.values():
        each.finish()
    for bias in biases:
        bias.requires_grad_(False)


def learn_activations(stage: Stage, config: ReconstructionConfig, batches: Batches) -> None:
    """LSQ: Adam on the logarithm of the unit's step sizes; zero-points stay (Q-Diffusion, section 4.3)."""
    if not stage.activations or not config.act_steps:
        return
    factors = [each.log_factor.requires_grad_() for each in stage.activations.values()]
    optimizer = torch.optim.Adam(factors, lr=config.act_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.act_steps)
    for _ in range(config.act_steps):
        rows = batches.draw()
        error = (stage.run(rows) - stage.target(rows)).abs()
        loss = error.pow(config.act_loss_power).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
    for factor in factors:
        factor.requires_grad_(False)


def annealed(ends: tuple[float, float], progress: float) -> float:
    """β along a half cosine from the first to the second end."""
    start, end = ends
    return end + (start - end) * 0.5 * (1 + math.cos(progress * math.pi))
