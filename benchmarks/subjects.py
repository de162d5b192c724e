"""The trained networks whose fidelity is measured: how each is sampled, and how its images are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.contender import Batch
from benchmarks.networks import Network, get_network, shared_module
from qdiff_fx import collect_calibration_data
from qdiff_fx.evaluation import Trajectory, generate, trajectory

Judge = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A network, its sampler, and the judge of its images.

    Attributes:
        scheduler: with its timesteps set.
        collect: calibration data of the network: its inputs while sampling so many images from that seed.
        features: images (N, C, H, W) in [-1, 1] to features (N, D).
        conditioning: the network's further arguments for the images numbered by a range; both halves if guided.
        guidance_scale: above 1, classifier-free guidance.
        step_options: further arguments of the scheduler's step.
        class_accuracy: the share of images (N, C, H, W), numbered from 0, that show the class they should.
    """

    network: Network
    scheduler: Any
    collect: Callable[[nn.Module, int, int], Iterable[Batch]]
    features: Judge
    conditioning: Callable[[range], dict[str, Any]] = lambda images: {}
    guidance_scale: float = 1.0
    step_options: Mapping[str, Any] = field(default_factory=dict)
    class_accuracy: Callable[[torch.Tensor], float | None] = lambda images: None

    @property
    def halves(self) -> int:
        """Rows of a batch per image."""
        return 2 if self.guidance_scale > 1 else 1

    def generate(self, predict: Callable[..., Any], noise: torch.Tensor, images: range) -> torch.Tensor:
        """The final images that `predict` makes of their noise."""
        return generate(predict, self.scheduler, noise, **self._options(), **self.conditioning(images))

    def trajectory(self, predict: Callable[..., Any], noise: torch.Tensor, images: range) -> Trajectory:
        """`generate`, with every step recorded."""
        return trajectory(predict, self.scheduler, noise, **self._options(), **self.conditioning(images))

    def _options(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance_scale, "step_options": self.step_options}


def get_subject(name: str, steps: int) -> Subject:
    """The subject of that name, sampled in `steps` DDIM steps; raises ValueError with the known names."""
    if name not in SUBJECTS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(SUBJECTS)}")
    return SUBJECTS[name](steps)


def _anime(steps: int) -> Subject:
    scheduler = shared_module("anime-ddpm-64").make_scheduler(steps)
    judge = shared_module("squeezenet").load()

    def collect(unet: nn.Module, images: int, seed: int) -> Iterable[Batch]:
        return collect_calibration_data(
            unet, scheduler=scheduler, num_samples=images, num_inference_steps=steps, batch_size=images, seed=seed
        )

    def features(images: torch.Tensor) -> torch.Tensor:
        return judge.features_of((images / 2 + 0.5).clamp(0, 1))

    return Subject(get_network("anime"), scheduler, collect, features)


def _digits(steps: int) -> Subject:
    from qdiff_fx.bundled.digits import (
        DEFAULT_GUIDANCE,
        load_digit_classifier,
        load_digits_embedding,
        make_digits_scheduler,
    )
    from qdiff_fx.bundled.modules import NULL_LABEL
    from qdiff_fx.bundled.pipeline import DigitsPipeline

    embedding, scheduler, judge = load_digits_embedding(), make_digits_scheduler(steps), load_digit_classifier()

    def collect(unet: nn.Module, images: int, seed: int) -> Iterable[Batch]:
        return collect_calibration_data(
            DigitsPipeline(unet, embedding, scheduler),
            num_samples=images,
            num_inference_steps=steps,
            batch_size=images,
            seed=seed,
            inputs={"labels": [image % 10 for image in range(images)]},
            guidance_scale=DEFAULT_GUIDANCE,
        )

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
        scheduler,
        collect,
        features=torch.no_grad()(judge.features),
        conditioning=conditioning,
        guidance_scale=DEFAULT_GUIDANCE,
        step_options={"use_clipped_model_output": True},
        class_accuracy=class_accuracy,
    )


SUBJECTS: dict[str, Callable[[int], Subject]] = {"anime": _anime, "digits": _digits}
