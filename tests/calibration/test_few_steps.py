"""Networks of few steps are calibrated on those that they take, and a single one has no tables."""

from __future__ import annotations

from typing import Any

import diffusers as d
import pytest
import torch

import qdiff_fx
from qdiff_fx import QDiffConfig
from qdiff_fx.sources import Source
from qdiff_fx.workflow import enough, one_call
from qdiff_fx.workflow.job import Job
from tests.pipelines.images import consistency, ddpm, latent_consistency, stable_diffusion
from tests.pipelines.parts import one_cross_attention, tiny_pipeline

NEAREST = QDiffConfig(weight_rounding="nearest")
TIMESTEP_BIN = torch.ops.qdiff.timestep_bin.default


def turbo() -> Any:
    """Of SD-Turbo's kind: its steps are the last of equal parts of the schedule."""
    return tiny_pipeline(scheduler=d.EulerDiscreteScheduler(timestep_spacing="trailing"))


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (latent_consistency, 4),
        (lambda: stable_diffusion(scheduler=d.LCMScheduler()), 4),
        (lambda: stable_diffusion(scheduler=d.TCDScheduler()), 4),
        (consistency, 1),
        (stable_diffusion, 25),
        (ddpm, 25),
    ],
)
def test_how_many_steps_are_usual(build: Any, steps: int) -> None:
    assert Source("", build(), ["a fish"]).usual_steps == steps


def timesteps(pipe: Any, **more: Any) -> set[float]:
    """Those of the rows that it is calibrated on; then it is quantized."""
    pipe.set_progress_bar_config(disable=True)
    seen: set[float] = set()
    calibrated = one_call.calibrated

    def watched(source: Source, job: Job, *given: Any, **named: Any) -> Any:
        for batch in source.calibration_data(job.request, every=1):
            seen.update(torch.as_tensor(batch["timestep"]).float().flatten().tolist())
        return calibrated(source, job, *given, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(one_call, "calibrated", watched)
        qdiff_fx.quantize(pipe, NEAREST, budget=None, progress=False, **more)
    return seen


def tables(pipe: Any) -> int:
    return sum(node.target is TIMESTEP_BIN for node in pipe.unet.graph_module.graph.nodes)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enough, "usual_trajectories", lambda steps: 2)


@pytest.mark.slow
def test_a_latent_consistency_model_is_calibrated_on_its_four_steps() -> None:
    pipe = latent_consistency()
    expected = d.LCMScheduler.from_config(pipe.scheduler.config)
    expected.set_timesteps(4, original_inference_steps=50)
    four = set(expected.timesteps.float().tolist())
    assert len(four) == 4
    assert timesteps(pipe, data=["a fish"], parts="unet") == four
    assert tables(pipe) == 1
    prompt = {"prompt": "a fish", "output_type": "latent", "num_inference_steps": 4}
    assert pipe(**prompt).images.isfinite().all()


def test_a_network_of_one_step_has_no_tables() -> None:
    pipe = turbo()
    assert timesteps(pipe, data=["a fish"], parts="unet", steps=1) == {999.0}
    assert not tables(pipe)
    prompt = {"prompt": "a fish", "output_type": "latent", "guidance_scale": 0.0}
    one = pipe(**prompt, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images
    assert one.isfinite().all()


@pytest.mark.slow
def test_a_consistency_model_draws_in_the_one_step_it_was_calibrated_on() -> None:
    pipe = consistency()
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert len(timesteps(pipe)) == 1
    assert not tables(pipe)
    found = pipe(generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert float(20 * torch.log10(expected.norm() / (expected - found).norm())) > 15


def test_what_saw_one_timestep_has_no_tables_and_takes_all() -> None:
    sample, prompt = torch.randn(2, 4, 16, 16), torch.randn(2, 24, 32)
    data = [{"sample": sample, "timestep": torch.tensor(999), "encoder_hidden_states": prompt}]
    prepared = qdiff_fx.prepare_qdiff(one_cross_attention().eval(), NEAREST, data[0])
    qdiff_fx.calibrate(prepared, data, progress=False)
    found = qdiff_fx.convert_qdiff(prepared, "reference")
    assert not any(node.target is TIMESTEP_BIN for node in found.graph_module.graph.nodes)
    early = found(**{**data[0], "timestep": torch.tensor(10)})
    assert early.sample.isfinite().all()
