"""Steps that are chosen by where they lead."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

from qdiff_fx.bundled.digits import load_digits_pipeline
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.schedules import optimize_schedule, with_schedule
from qdiff_fx.schedules.placing import placed
from qdiff_fx.schedules.trajectories import Sampling
from qdiff_fx.schedules.walk import uniform

SEED = 3


class Denoiser(nn.Module):
    """ε of pictures whose pixels are normally distributed, each as widely as its column says."""

    def __init__(self):
        super().__init__()
        self.config = {"in_channels": 1, "sample_size": 8}
        self.register_buffer("abar", DDIMScheduler().alphas_cumprod)
        self.register_buffer("variance", torch.linspace(0.05, 1, 8).square())

    def forward(self, sample, timestep):
        abar = self.abar[timestep.long()]
        return sample * (1 - abar).sqrt() / (self.variance * abar + 1 - abar)


def sampling_of(scheduler, steps, source=None):
    return Sampling(source or Denoiser(), scheduler, uniform(scheduler, steps), 2, {}, SEED, None)


def drawn(scheduler, schedule, source=None):
    """The images of a schedule, by a sampler that knows nothing of placing."""
    sampling = sampling_of(scheduler, schedule.out_of, source)
    seen = []
    sampling._draw(schedule, seen.append)
    return seen[-1].arrived


SCHEDULERS = [
    DDIMScheduler(),
    DDIMScheduler(timestep_spacing="linspace", clip_sample=False),
    EulerDiscreteScheduler(use_karras_sigmas=True),
    DPMSolverMultistepScheduler(),
    DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=3, use_karras_sigmas=True),
    UniPCMultistepScheduler(),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_error_it_chooses_by_is_that_of_the_images(scheduler):
    sampling = sampling_of(scheduler, 8)
    first, reference = sampling.reference()
    for found in placed(sampling, first, reference):
        images = drawn(scheduler, sampling.every_step.part(found.steps))
        off = float((images.double() - reference[-1].double()).square().mean().sqrt())
        assert found.error == pytest.approx(off, abs=2e-5)
    assert found.steps == tuple(range(8))
    assert found.error < 2e-5


def test_it_is_as_good_as_trying_all_of_them():
    scheduler = DDIMScheduler(clip_sample=False)
    sampling = sampling_of(scheduler, 9)
    first, reference = sampling.reference()
    for found in placed(sampling, first, reference):
        if len(found.steps) not in (3, 4, 6):
            continue
        errors = [
            float((drawn(scheduler, sampling.every_step.part([0, *rest])) - reference[-1]).square().mean().sqrt())
            for rest in combinations(range(1, 9), len(found.steps) - 1)
        ]
        assert found.error <= sorted(errors)[len(errors) // 20], "it is among the best twentieth"


def test_placed_steps_are_nearer_than_as_many_uniform_ones():
    scheduler = DDIMScheduler(clip_sample=False)
    schedule = optimize_schedule(Denoiser(), 4, 6, out_of=24, scheduler=scheduler, seed=1, progress=False)
    assert (len(schedule), schedule.out_of) == (6, 24)
    every, fewer = uniform(scheduler, 24), uniform(scheduler, 6)

    def off(way):
        return float((drawn(scheduler, way) - drawn(scheduler, every)).square().mean())

    assert off(schedule) < 0.5 * off(fewer), "on noise of another seed"


def test_pipelines_are_driven_with_their_own_arguments():
    pipe = load_digits_pipeline()
    scheduler = pipe.scheduler
    labels = torch.tensor([3, 5])
    schedule = optimize_schedule(pipe, {"labels": labels}, 3, out_of=5, progress=False)
    assert pipe.scheduler is scheduler, "what was borrowed is back"
    assert len(schedule) == 3
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    images = pipe(labels, 3, generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 1, 32, 32)


def test_the_same_seed_gives_the_same_steps():
    found = [optimize_schedule(Denoiser(), 2, 4, out_of=8, scheduler=DDIMScheduler(), progress=False) for _ in range(2)]
    assert found[0] == found[1]


def test_more_steps_than_there_are_are_refused():
    with pytest.raises(ConfigError, match="9 steps cannot be chosen from 8"):
        optimize_schedule(Denoiser(), 2, 9, out_of=8, scheduler=DDIMScheduler(), progress=False)


def test_a_network_alone_needs_a_scheduler():
    with pytest.raises(ConfigError, match="scheduler"):
        optimize_schedule(Denoiser(), 2, 4, out_of=8, progress=False)


@pytest.mark.parametrize("data", ["one prompt", 3.5, [1, 2], None])
def test_data_that_do_not_say_what_to_draw_are_refused(data):
    with pytest.raises(ConfigError, match="does not say what to draw"):
        optimize_schedule(Denoiser(), data, 4, out_of=8, scheduler=DDIMScheduler(), progress=False)


def test_no_samples_are_refused():
    with pytest.raises(ConfigError, match="0 samples"):
        optimize_schedule(Denoiser(), 0, 4, out_of=8, scheduler=DDIMScheduler(), progress=False)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), EulerAncestralDiscreteScheduler()])
def test_schedulers_that_draw_noise_on_the_way_are_refused(scheduler):
    with pytest.raises(CalibrationError, match="draws noise on the way"):
        optimize_schedule(Denoiser(), 2, 4, out_of=8, scheduler=scheduler, progress=False)


def test_a_network_that_gives_nan_is_refused_with_the_timestep():
    class Broken(Denoiser):
        def forward(self, sample, timestep):
            return super().forward(sample, timestep) / float(timestep != 375)

    with pytest.raises(CalibrationError, match="NaN or infinity at timestep 375"):
        optimize_schedule(Broken(), 2, 4, out_of=8, scheduler=DDIMScheduler(), progress=False)


def test_a_pipeline_that_begins_in_the_middle_is_refused():
    class Late(DDIMPipeline):
        def __call__(self, batch_size=1, num_inference_steps=8, generator=None):
            self.scheduler.set_timesteps(num_inference_steps)
            sample = torch.zeros(batch_size, 1, 8, 8)
            for timestep in self.scheduler.timesteps[2:]:
                sample = self.scheduler.step(self.unet(sample, timestep), timestep, sample).prev_sample
            return (sample,)

    with pytest.raises(CalibrationError, match="took 6 of 8 steps"):
        optimize_schedule(Late(copy.deepcopy(Denoiser()), DDIMScheduler()), 2, 4, out_of=8, progress=False)
