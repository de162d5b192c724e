"""The trained networks whose fidelity is measured: how each is sampled, and how its images are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.networks import Network, get_network, shared_module

Judge = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A network, its sampler, and the judge of its images.

    Attributes:
        scheduler: with its timesteps set.
        features: images (N, C, H, W) in [-1, 1] to features (N, D).
        conditioning: the network's further arguments for the images numbered by a range; both halves if guided.
        guidance_scale: above 1, classifier-free guidance.
        class_accuracy: the share of images (N, C, H, W), numbered from 0, that show the class they should.
    """

    network: Network
    scheduler: Any
    features: Judge
    conditioning: Callable[[range], dict[str, Any]] = lambda images: {}
    guidance_scale: float = 1.0
    class_accuracy: Callable[[torch.Tensor], float | None] = lambda images: None

    @property
    def halves(self) -> int:
        """Rows of a batch per image."""
        return 2 if self.guidance_scale > 1 else 1


def get_subject(name: str, steps: int) -> Subject:
    """The subject of that name, sampled in `steps` DDIM steps; raises ValueError with the known names."""
    if name not in SUBJECTS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(SUBJECTS)}")
    return SUBJECTS[name](steps)


def _anime(steps: int) -> Subject:
    scheduler = shared_module("anime-ddpm-64").make_scheduler(steps)
    judge = shared_module("squeezenet").load()
    return Subject(
        get_network("anime"), scheduler, features=lambda images: judge.features_of((images / 2 + 0.5).clamp(0, 1))
    )


def _digits(steps: int) -> Subject:
    from qdiff_fx.bundled.digits import (
        DEFAULT_GUIDANCE,
        load_digit_classifier,
        load_digits_embedding,
        make_digits_scheduler,
    )
    from qdiff_fx.bundled.modules import NULL_LABEL

    embedding, judge = load_digits_embedding(), load_digit_classifier()

    @torch.no_grad()
    def conditioning(images: range) -> dict[str, torch.Tensor]:
        labels = torch.tensor([image % 10 for image in images])
        both = torch.cat([torch.full_like(labels, NULL_LABEL), labels])
        return {"encoder_hidden_states": embedding(both)}

    @torch.no_grad()
    def class_accuracy(images: torch.Tensor) -> float:
        labels = torch.arange(len(images)) % 10
        return float((judge(images).argmax(1) == labels).float().mean())

    return Subject(
        get_network("digits"),
        make_digits_scheduler(steps),
        features=torch.no_grad()(judge.features),
        conditioning=conditioning,
        guidance_scale=DEFAULT_GUIDANCE,
        class_accuracy=class_accuracy,
    )


SUBJECTS: dict[str, Callable[[int], Subject]] = {"anime": _anime, "digits": _digits}
