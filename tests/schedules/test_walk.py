"""Schedulers that take some of their steps only."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from qdiff_fx.errors import ConfigError, InputError
from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules.walk import schedule_of, uniform, with_schedule

DETERMINISTIC = [
    DDIMScheduler(),
    DDIMScheduler(num_train_timesteps=300, timestep_spacing="linspace", beta_schedule="squaredcos_cap_v2"),
    DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False),
    EulerDiscreteScheduler(),
    EulerDiscreteScheduler(use_karras_sigmas=True),
    DPMSolverMultistepScheduler(),
    DPMSolverMultistepScheduler(use_karras_sigmas=True),
    DEISMultistepScheduler(),
    UniPCMultistepScheduler(),
    FlowMatchEulerDiscreteScheduler(),
]


def network(sample, timestep):
    return torch.tanh(sample * 0.7 + 0.1) + sample.mean()


def denoise(network, scheduler, sample):
    """As `sampling.loop.denoise`, also with schedulers for flow matching, which scale nothing."""
    for timestep in scheduler.timesteps:
        scaled = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)(sample, timestep)
        sample = scheduler.step(network(scaled, timestep), timestep, sample).prev_sample
    return sample


def part_of(scheduler, steps, chosen):
    return uniform(scheduler, steps).part(chosen)


def noise():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheduler", [*DETERMINISTIC, DDPMScheduler(variance_type="fixed_small"), LCMScheduler()])
def test_all_of_its_steps_are_what_it_does_by_itself(scheduler):
    plain = copy.deepcopy(scheduler)
    plain.set_timesteps(10)
    walked = with_schedule(scheduler, uniform(scheduler, 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = denoise(network, plain, noise())
        torch.manual_seed(0)
        assert torch.equal(denoise(network, walked, noise()), expected)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False),
        EulerDiscreteScheduler(),
        EulerDiscreteScheduler(use_karras_sigmas=True),
        DPMSolverMultistepScheduler(solver_order=1),
        FlowMatchEulerDiscreteScheduler(),
    ],
)
def test_where_the_way_is_straight_steps_may_be_left_out(scheduler):
    def straight(sample, timestep):
        return torch.ones_like(sample)

    few = denoise(straight, with_schedule(scheduler, part_of(scheduler, 10, [0, 1, 4, 8])), noise())
    many = denoise(straight, with_schedule(scheduler, uniform(scheduler, 10)), noise())
    assert torch.allclose(few, many, atol=1e-3 * float(many.abs().max()))


@pytest.mark.parametrize("options", [{}, {"use_clipped_model_output": True}])
def test_ddim_holds_its_noise_through_the_steps_left_out(options):
    """Each of them clips, and ends where it ends, which is not where the next one begins: 1000 is no multiple of 7."""
    scheduler = DDIMScheduler(timestep_spacing="linspace", clip_sample=True)
    scheduler.set_timesteps(7)
    walked = with_schedule(scheduler, part_of(scheduler, 7, [0, 2, 5]))
    predicted = network(noise(), None)
    arrived = walked.step(predicted, walked.timesteps[1], noise(), **options).prev_sample
    expected = noise()
    for timestep in scheduler.timesteps[2:5]:
        expected = scheduler.step(predicted, timestep, expected, **options).prev_sample
    assert torch.equal(arrived, expected)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_noise_is_held_whatever_the_network_predicts(kind):
    scheduler = DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=False)
    other = DDIMScheduler(clip_sample=False, prediction_type=kind)
    epsilon = network(noise(), None)
    chosen = part_of(scheduler, 7, [0, 2, 5])
    first, second = with_schedule(scheduler, chosen), with_schedule(other, chosen)
    timestep = first.timesteps[1]
    signal = scheduler.alphas_cumprod[timestep]
    image = (noise() - (1 - signal).sqrt() * epsilon) / signal.sqrt()
    predicted = image if kind == "sample" else signal.sqrt() * epsilon - (1 - signal).sqrt() * image
    expected = first.step(epsilon, timestep, noise()).prev_sample
    assert torch.allclose(second.step(predicted, timestep, noise()).prev_sample, expected, atol=1e-4)


def test_the_list_of_a_schedule_is_what_diffusers_takes():
    scheduler = EulerDiscreteScheduler()
    schedule = part_of(scheduler, 10, [0, 1, 4, 8])
    scheduler.set_timesteps(timesteps=list(schedule.timesteps))
    walked = with_schedule(EulerDiscreteScheduler(), schedule)
    assert torch.allclose(scheduler.sigmas, walked.sigmas, rtol=1e-4)


def test_a_watcher_sees_every_step_and_may_move_it():
    seen = []
    scheduler = EulerDiscreteScheduler()

    def watch(taken):
        seen.append(taken)
        return taken.arrived + 1 if taken.number == 1 else None

    walked = with_schedule(scheduler, part_of(scheduler, 10, [0, 3, 6]), watch)
    denoise(network, walked, noise() * walked.init_noise_sigma)
    assert [each.number for each in seen] == [0, 1, 2]
    assert torch.equal(seen[1].sample, seen[0].arrived)
    assert torch.equal(seen[2].sample, seen[1].arrived + 1)


def test_pipelines_take_it_and_save_what_they_had(tmp_path):
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1,
    )  # fmt: skip
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = with_schedule(pipe.scheduler, part_of(pipe.scheduler, 10, [0, 1, 4]))
    calls = []
    handle = unet.register_forward_hook(lambda *call: calls.append(int(call[1][1])))
    pipe(num_inference_steps=3)
    handle.remove()
    assert calls == [900, 800, 500]
    pipe.save_pretrained(tmp_path)
    assert type(DDIMPipeline.from_pretrained(tmp_path).scheduler) is DDIMScheduler


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), EulerDiscreteScheduler()])
def test_it_takes_another_schedule_in_place_of_the_first(scheduler):
    every = uniform(scheduler, 10)
    once = with_schedule(scheduler, every.part([0, 3, 6]))
    twice = with_schedule(once, every.part([0, 5]))
    assert schedule_of(scheduler) is None
    assert schedule_of(twice) == every.part([0, 5])
    assert uniform(once, 10) == every
    assert torch.equal(
        denoise(network, twice, noise()), denoise(network, with_schedule(scheduler, every.part([0, 5])), noise())
    )


def test_another_number_of_steps_is_refused():
    scheduler = EulerDiscreteScheduler()
    walked = with_schedule(scheduler, part_of(scheduler, 10, [0, 3, 6]))
    with pytest.raises(InputError, match="takes the 3 steps of a schedule, and is asked for 25 steps"):
        walked.set_timesteps(25)
    with pytest.raises(InputError, match="its own timesteps"):
        walked.set_timesteps(timesteps=[999, 1])


def test_noise_between_ddim_steps_is_refused():
    scheduler = DDIMScheduler()
    walked = with_schedule(scheduler, part_of(scheduler, 10, [0, 3, 6]))
    with pytest.raises(InputError, match="eta"):
        walked.step(noise(), walked.timesteps[0], noise(), eta=1.0)


def test_a_step_that_is_none_of_its_own_is_refused():
    scheduler = DDIMScheduler()
    walked = with_schedule(scheduler, part_of(scheduler, 10, [0, 3, 6]))
    with pytest.raises(InputError, match="begins at timestep 800"):
        walked.step(noise(), 800, noise())


def test_more_steps_than_there_were_in_training_are_refused():
    with pytest.raises(ConfigError, match="11 steps cannot be taken of 10 training steps"):
        uniform(DDIMScheduler(num_train_timesteps=10), 11)
    with pytest.raises(ConfigError, match="a time from 0 to 1"):
        uniform(DDPMWuerstchenScheduler(), 10)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler(), PNDMScheduler()])
def test_schedulers_that_call_the_network_twice_a_step_are_refused(scheduler):
    with pytest.raises(ConfigError, match="10 steps of it are .* calls of the network"):
        part_of(scheduler, 10, [0, 3])


def test_another_schedulers_schedule_is_refused():
    schedule = part_of(DDIMScheduler(), 10, [0, 3])
    with pytest.raises(ConfigError, match="made for DDIMScheduler of 1000 training steps, not for Euler"):
        with_schedule(EulerDiscreteScheduler(), schedule)
    with pytest.raises(ConfigError, match="not for DDIMScheduler of 300"):
        with_schedule(DDIMScheduler(num_train_timesteps=300), schedule)
    with pytest.raises(ConfigError, match="timesteps there are"):
        with_schedule(DDIMScheduler(timestep_spacing="trailing"), schedule)


@pytest.mark.parametrize(
    "changed",
    [
        {"chosen": ()},
        {"chosen": (1, 3)},
        {"chosen": (0, 10)},
        {"chosen": (0, 0)},
        {"out_of": 0},
        {"num_train_timesteps": 0},
        {"timesteps": (900.0,)},
        {"timesteps": (900.0, float("nan"))},
        {"sigmas": (1.0, 0.0)},
        {"sigmas": (1.0, float("inf"), 0.0)},
    ],
)
def test_what_is_no_schedule_is_refused(changed):
    good = {"scheduler": "DDIMScheduler", "num_train_timesteps": 1000, "out_of": 10, "chosen": (0, 3)}
    good |= {"timesteps": (900.0, 600.0)}
    Schedule(**good)
    with pytest.raises(ConfigError, match="schedule"):
        Schedule(**(good | changed))
