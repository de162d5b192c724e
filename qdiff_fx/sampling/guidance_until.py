"""Guidance that ends before sampling does: from there on a step computes the conditional half alone.

What guidance adds is decided early: at low noise it moves images little (Kynkäänniemi et al., arXiv 2404.07724).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qdiff_fx.errors import ConfigError

TEXT, XL = ("prompt_embeds",), ("prompt_embeds", "add_text_embeds", "add_time_ids")
MASKED = ("mask", "masked_image_latents")
OF_BOTH_HALVES = {
    "StableDiffusionPipeline": TEXT,
    "StableDiffusionImg2ImgPipeline": TEXT,
    "StableDiffusionInpaintPipeline": (*TEXT, *MASKED),
    "StableDiffusionControlNetPipeline": (*TEXT, "image"),
    "StableDiffusionXLPipeline": XL,
    "StableDiffusionXLImg2ImgPipeline": XL,
    "StableDiffusionXLInpaintPipeline": (*XL, *MASKED),
    "StableDiffusionXLControlNetPipeline": (*XL, "image"),
    "StableDiffusion3Pipeline": (*TEXT, "pooled_prompt_embeds"),
    "Kandinsky3Pipeline": (*TEXT, "attention_mask"),
    "AnimateDiffPipeline": TEXT,
}
"""What pipelines keep both halves of, the unconditional one first. Others compute the halves one after the other, keep
more of them than they hand out, or ask about guidance once."""
OF_PICTURES = "ip_image_proj"
"""How networks say that they read an IP-Adapter's pictures, both halves of which no callback is given."""


def guidance_until(share: float, pipe: Any) -> dict[str, Any]:
    """Arguments for a pipeline of diffusers that end its guidance: ``pipe(prompt, **guidance_until(0.6, pipe))``.

    The first `guided_steps` of an image take two rows of the network for each sample, the others one. What is not
    guided at all (a scale of 1 or less, a network that takes the scale as an input) is drawn as ever.

    Args:
        share: of the steps, above 0 and at most 1.
        pipe: of one of the classes in `OF_BOTH_HALVES`.
    Raises:
        ConfigError: the share is none; or the pipeline is of another class, or has an IP-Adapter.
    """
    _check(share)
    if share == 1:
        return {}
    names = OF_BOTH_HALVES.get(type(pipe).__name__)
    network = getattr(getattr(pipe, "unet", None), "config", None)
    if names is None or getattr(network, "encoder_hid_dim_type", None) == OF_PICTURES:
        of = "an IP-Adapter" if names else "both halves"
        raise ConfigError(
            f"what {type(pipe).__name__} computes of {of} cannot be halved on the way",
            where="guidance_until",
            fix="Leave it out: all steps are guided then",
        )

    def ended(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step + 1 != guided_steps(share, pipe.num_timesteps) or not pipe.do_classifier_free_guidance:
            return given
        pipe._guidance_scale = 1.0  # which every call of the pipeline sets anew
        return {name: _conditional(each) if name in names else each for name, each in given.items()}

    return {"callback_on_step_end": ended, "callback_on_step_end_tensor_inputs": list(names)}


def _conditional(both: Any) -> Any:
    """The second half; of each, where there are several (of ControlNets)."""
    if isinstance(both, list):
        return [_conditional(each) for each in both]
    return both.chunk(2)[1] if isinstance(both, Tensor) else both


def guided_steps(share: float, steps: int) -> int:
    """How many of so many steps are guided: at least one.

    Raises:
        ConfigError: the share is not above 0, or above 1.
    """
    _check(share)
    return max(1, round(share * steps))


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(
            f"{share} is no share of the steps",
            where="guidance_until",
            fix="Give more than 0 and at most 1; a guidance_scale of 1 draws without",
        )
