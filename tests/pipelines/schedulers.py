"""Lines of schedulers, on a pipeline of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import diffusers as d

from tests.pipelines.images import prompted, stable_diffusion
from tests.pipelines.line import Line
from tests.pipelines.parts import ddim

Act = Callable[[Any], Any]


def line(name: str, make: Act, needs: Sequence[str] = (), **call: Any) -> Line:
    """A line of what `make` makes of the pipeline's own scheduler."""

    def build() -> Any:
        pipe = stable_diffusion()
        pipe.scheduler = make(pipe.scheduler.config)
        return pipe

    return Line(name, build, prompted(**call), unet=stable_diffusion, needs=needs)


def of(name: str, needs: Sequence[str] = (), **settings: Any) -> Line:
    """A line of the scheduler of that name, with further settings."""
    said = ", ".join(f"`{key}={value!r}`" for key, value in settings.items())
    title = f"`{name}` {said}".strip()
    return line(title, lambda config: getattr(d, name).from_config(dict(config), **settings), needs)


LINES = [
    of("DDIMScheduler"),
    of("DDPMScheduler"),
    of("PNDMScheduler", skip_prk_steps=True),
    of("LMSDiscreteScheduler", needs=("scipy",)),
    of("EulerDiscreteScheduler"),
    of("EulerDiscreteScheduler", use_karras_sigmas=True),
    of("EulerAncestralDiscreteScheduler"),
    of("HeunDiscreteScheduler"),
    of("KDPM2DiscreteScheduler"),
    of("DPMSolverMultistepScheduler"),
    of("DPMSolverMultistepScheduler", use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"),
    of("DPMSolverSinglestepScheduler"),
    of("DEISMultistepScheduler"),
    of("UniPCMultistepScheduler"),
    of("LCMScheduler"),
    of("TCDScheduler"),
    line("`EDMEulerScheduler`", lambda config: d.EDMEulerScheduler()),
    line("`EDMDPMSolverMultistepScheduler`", lambda config: d.EDMDPMSolverMultistepScheduler()),
    line("`CMStochasticIterativeScheduler`", lambda config: d.CMStochasticIterativeScheduler()),
    line(
        "`EulerDiscreteScheduler` with `c_noise` for timesteps (`continuous`)",
        lambda config: d.EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0
        ),
    ),
    line(
        "one step, as of Turbo",
        lambda config: d.EulerAncestralDiscreteScheduler.from_config(config, timestep_spacing="trailing"),
        num_inference_steps=1,
        guidance_scale=0.0,
    ),
    line("2000 steps of training", lambda config: ddim(num_train_timesteps=2000, beta_end=0.006)),
]
