"""Reconstruct one unit: learn, judge, and keep only what is better than before."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.reconstruction.cache import ActivationCache
from qdiff_fx.reconstruction.config import ReconstructionConfig
from qdiff_fx.reconstruction.data import Samples
from qdiff_fx.reconstruction.folding import folded
from qdiff_fx.reconstruction.learning import Batches, learn_activations, learn_weights, moved_by_activations
from qdiff_fx.reconstruction.report import UnitReport
from qdiff_fx.reconstruction.sensitivity import channel_rows, expected_error
from qdiff_fx.reconstruction.stage import Stage

JUDGED = 32
"""Samples that a unit is judged on, evenly over the timesteps."""
LEAST_SHARE = 0.05
"""Of the steps; a unit that would take fewer is left as it is."""
CHUNK = 16
"""Samples computed at a time where nothing is learned."""


@dataclass(frozen=True)
class Lesson:
    """What all units of a pass share.

    Attributes:
        weights, activations: what the pass learns.
        sensitivity: per output node, see `output_sensitivity`; empty for the plain objective.
    """

    config: ReconstructionConfig
    samples: Samples
    cache: ActivationCache
    sensitivity: Mapping[str, Tensor]
    weights: bool
    activations: bool


def reconstruct_unit(stage: Stage, lesson: Lesson, seed: int) -> UnitReport:
    """Learn the unit's rounding and step sizes. What does not lower its loss is taken back, and the report says so."""
    config = lesson.config
    before = _judge(stage, lesson, power=2.0)
    batches = Batches(lesson.samples, config.batch_size, seed)
    after, reasons = before, []
    if lesson.weights and stage.roundings:
        steps = _share(config.weight_steps, before, config)

        def weights() -> None:
            with _folded(stage, lesson, [*stage.roundings.values(), *stage.biases.values()]) as rest:
                learn_weights(stage, config, steps, _objective(rest, lesson, before, power=2.0), batches)

        after, reason = _attempt(stage, lesson, weights if steps else None, after, "the rounding", power=2.0)
        reasons.append(reason)
    if lesson.activations and stage.activations:
        power = config.act_loss_power
        steps = _share(config.act_steps, before, config)

        def activations() -> None:
            with _folded(stage, lesson, moved_by_activations(stage, config)) as rest:
                learn_activations(stage, config, steps, _objective(rest, lesson, before, power=power), batches)

        after, reason = _attempt(stage, lesson, activations if steps else None, after, "the step sizes", power=2.0)
        reasons.append(reason)
    return UnitReport(stage.unit.path, before, after, "; ".join(filter(None, reasons)))


def _folded(stage: Stage, lesson: Lesson, learned: Collection[object]) -> AbstractContextManager[Stage]:
    """The stage without what comes before these modules, see `folded`."""
    config = lesson.config
    return folded(stage, lesson.cache, learned, bfloat16=config.in_bfloat16, room=config.cache_bytes, chunk=CHUNK)


def _attempt(
    stage: Stage, lesson: Lesson, learn: Callable[[], None] | None, before: float, what: str, *, power: float
) -> tuple[float, str]:
    """The loss after learning, and why it was taken back."""
    if learn is None:
        return before, ""
    kept = stage.state()
    learn()
    after = _judge(stage, lesson, power=power)
    if after < before:
        return after, ""
    stage.restore(kept)
    return before, f"{what} diverged" if not math.isfinite(after) else f"learning {what} did not help"


def _share(steps: int, before: float, config: ReconstructionConfig) -> int:
    """More steps for units that matter more: in proportion to the root of their loss, see `typical_loss`."""
    if not config.typical_loss:
        return steps
    share = min(3.0, math.sqrt(before / config.typical_loss))
    return math.ceil(steps * share) if share >= LEAST_SHARE else 0


def _objective(stage: Stage, lesson: Lesson, before: float, *, power: float) -> Callable[[Tensor], Tensor]:
    """The loss that is learned from; for the output's error in units of where it starts, as λ is meant for."""
    scale = before if lesson.sensitivity else 1.0

    def loss(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if lesson.config.in_bfloat16 else nullcontext():
            error = stage.error(lesson.cache, rows)
        return _loss(stage, lesson, error, power) / max(scale, 1e-30)

    return loss


@torch.no_grad()
def _judge(stage: Stage, lesson: Lesson, *, power: float) -> float:
    """The unit's loss over samples from the whole schedule."""
    rows = lesson.samples.evenly(JUDGED)
    losses = [
        float(_loss(stage, lesson, stage.error(lesson.cache, part), power)) * len(part) for part in rows.split(CHUNK)
    ]
    return sum(losses) / len(rows)


def _loss(stage: Stage, lesson: Lesson, error: Tensor, power: float) -> Tensor:
    """With sensitivities and p = 2, the relative error of the network's output to expect, `mean e_jᵀ G e_j`.

    Without, BRECQ's loss, summed over channels and averaged over the rest, which Q-Diffusion's λ was chosen for.
    """
    if lesson.sensitivity:
        return expected_error(error.float(), lesson.sensitivity[stage.unit.output])
    return channel_rows(error.float()).abs().pow(power).mean(0).sum()
