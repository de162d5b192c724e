"""Walking a trajectory: what is recorded is what the network saw, and nothing of the caller's is changed."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from qdiff_fx.errors import InputError
from qdiff_fx.sampling import generate, predict, trajectory
from qdiff_fx.sampling.guidance import Guidance
from qdiff_fx.sampling.loop import accepted_options


class Shrink(nn.Module):
    """A network one can follow by hand: eps = gain · x + timestep / 1000 (+ context)."""

    def __init__(self, gain: float = 0.1):
        super().__init__()
        self.gain = gain

    def forward(self, sample, timestep, context=None):
        eps = self.gain * sample + torch.as_tensor(timestep) / 1000
        return SimpleNamespace(sample=eps if context is None else eps + context.view(-1, 1, 1, 1))


def ddim(steps: int = 4) -> DDIMScheduler:
    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_steps_hold_what_the_network_saw_and_said(noise: torch.Tensor) -> None:
    unet, scheduler = Shrink(), ddim()
    walked = trajectory(unet, scheduler, noise)
    assert [int(step.timestep) for step in walked.steps] == scheduler.timesteps.tolist()
    assert torch.equal(walked.steps[0].sample, noise)
    for step in walked.steps:
        assert torch.equal(step.eps, unet(step.sample, step.timestep).sample)


def test_consecutive_steps_follow_the_scheduler(noise: torch.Tensor) -> None:
    scheduler = ddim()
    walked = trajectory(Shrink(), scheduler, noise)
    following = [step.sample for step in walked.steps[1:]] + [walked.final]
    for step, after in zip(walked.steps, following, strict=True):
        assert torch.equal(scheduler.step(step.eps, step.timestep, step.sample).prev_sample, after)


def test_generate_ends_where_the_trajectory_does(noise: torch.Tensor) -> None:
    assert torch.equal(generate(Shrink(), ddim(), noise), trajectory(Shrink(), ddim(), noise).final)


def test_batches_are_the_inputs_of_the_network(noise: torch.Tensor) -> None:
    context = torch.tensor([1.0, 2.0])
    walked = trajectory(Shrink(), ddim(), noise, context=context)
    for step, batch in zip(walked.steps, walked.batches(), strict=True):
        assert set(batch) == {"sample", "timestep", "context"}
        assert torch.equal(Shrink()(**batch).sample, step.eps)


def test_guidance_doubles_the_batch_and_weighs_its_halves(noise: torch.Tensor) -> None:
    context = torch.tensor([0.0, 0.0, 0.5, 0.5])
    walked = trajectory(Shrink(), ddim(), noise, guidance_scale=3.0, context=context)
    step = walked.steps[0]
    assert torch.equal(step.sample, torch.cat([noise, noise]))
    unconditional, conditional = step.eps.chunk(2)
    guided = unconditional + 3.0 * (conditional - unconditional)
    expected = ddim().step(guided, step.timestep, noise).prev_sample
    assert torch.equal(walked.steps[1].sample[:2], expected)


def test_guidance_of_one_runs_a_single_half(noise: torch.Tensor) -> None:
    assert trajectory(Shrink(), ddim(), noise, guidance_scale=1.0).steps[0].sample.shape == noise.shape


def test_a_multistep_scheduler_can_be_walked_twice(noise: torch.Tensor) -> None:
    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(4)
    assert torch.equal(generate(Shrink(), scheduler, noise), generate(Shrink(), scheduler, noise))


def test_two_networks_get_the_same_noise_from_a_stochastic_scheduler(noise: torch.Tensor) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(4)
    first, second = generate(Shrink(), scheduler, noise), generate(Shrink(), scheduler, noise)
    assert torch.equal(first, second)


def test_no_gradients_are_kept(noise: torch.Tensor) -> None:
    unet = nn.Conv2d(1, 1, 1)
    walked = trajectory(lambda sample, timestep: unet(sample), ddim(), noise)
    assert not walked.final.requires_grad
    assert not any(step.eps.requires_grad for step in walked.steps)


def test_a_scheduler_without_timesteps_is_refused(noise: torch.Tensor) -> None:
    with pytest.raises(InputError, match="set_timesteps"):
        trajectory(Shrink(), DDIMScheduler(num_train_timesteps=100), noise)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: (t,), lambda t: SimpleNamespace(sample=t)])
def test_predict_unwraps_every_kind_of_output(wrap) -> None:
    tensor = torch.ones(1, 1, 2, 2)
    assert torch.equal(predict(lambda sample, timestep: wrap(sample), tensor, 0), tensor)


def test_step_options_reach_the_scheduler(noise: torch.Tensor) -> None:
    scheduler, options = ddim(), {"use_clipped_model_output": True}
    walked = trajectory(Shrink(gain=3), scheduler, noise, step_options=options)
    step = walked.steps[0]
    expected = scheduler.step(step.eps, step.timestep, noise, **options).prev_sample
    assert torch.equal(walked.steps[1].sample, expected)
    assert not torch.equal(walked.final, generate(Shrink(gain=3), scheduler, noise))


def test_guidance_of_one_or_less_is_what_the_caller_says() -> None:
    """Pipelines read 1 as none; a bare network that is given both halves gets both, whatever the scale."""
    assert Guidance.above_one(1.0).halves == 1
    assert Guidance(1.0).halves == 2
    halves = torch.tensor([[1.0], [3.0]])
    assert Guidance(0.5).combined(halves).item() == 2
    assert torch.equal(Guidance().combined(halves), halves)


class LabelSecond(nn.Module):
    def forward(self, x, c, t):
        return x + c.view(-1, 1, 1, 1) + t / 1000


def test_a_network_may_take_its_timestep_after_its_label(noise: torch.Tensor) -> None:
    label = torch.tensor([1.0, 2.0])
    walked = trajectory(LabelSecond(), ddim(), noise, c=label)
    for step in walked.steps:
        assert torch.equal(step.eps, LabelSecond()(step.sample, label, step.timestep))


def test_options_that_the_scheduler_does_not_take_are_left_out() -> None:
    assert accepted_options(ddim(), generator=None, unheard_of=1) == {"generator": None}
