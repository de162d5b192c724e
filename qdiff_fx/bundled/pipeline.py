"""A class-conditional diffusers pipeline for the bundled digits model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import nn

from qdiff_fx.bundled.modules import IMAGE_SIZE, NULL_LABEL
from qdiff_fx.sampling.guidance import Guidance
from qdiff_fx.sampling.guidance_until import guided_steps
from qdiff_fx.sampling.loop import accepted_options, denoise

DEFAULT_GUIDANCE = 2.5
OUTPUT_TYPES = ("pt", "np", "pil")


@dataclass
class DigitsOutput(BaseOutput):
    """What the pipeline returns: `images`, in the output type asked for."""

    images: Any


class DigitsPipeline(DiffusionPipeline):
    """Draws digits with classifier-free guidance.

    `unet` may be replaced by anything that is called as `unet(sample, t, encoder_hidden_states=...)` and
    returns an object with `.sample`; `scheduler` by any diffusers scheduler built from this one's config.
    """

    def __init__(self, unet: nn.Module, embedding: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, embedding=embedding, scheduler=scheduler)  # type: ignore[no-untyped-call]  # diffusers' own

    @torch.no_grad()
    def __call__(
        self,
        labels: torch.Tensor | Sequence[int] | int,
        num_inference_steps: int = 25,
        guidance_scale: float = DEFAULT_GUIDANCE,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        guidance_until: float = 1.0,
    ) -> DigitsOutput | tuple[Any]:
        """Draw one image per label.

        Args:
            labels: digits 0-9 (or 10, unconditional), length B.
            num_inference_steps: scheduler steps.
            guidance_scale: weight of the conditional direction; 1 or less runs the conditional half alone.
            generator: source of the starting noise (and of the scheduler's, where it draws any).
            latents: starting noise (B, 1, 32, 32) in place of drawn noise.
            output_type: "pt" for a tensor (B, 1, 32, 32) in [-1, 1], the range of the model and the digit
                classifier; "np" for an array (B, 32, 32, 1) in [0, 1]; "pil" for a list of grey images.
            return_dict: return a `DigitsOutput` rather than a tuple.
            guidance_until: the share of the steps that are guided; the others run the conditional half alone.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        # The embedding says where to run: a replaced UNet need not have a `device`, nor any parameters.
        device = next(self.embedding.parameters()).device
        targets = _as_labels(labels).to(device)
        guidance = Guidance.above_one(guidance_scale)
        if guidance.scale is not None:
            context = self.embedding(torch.cat([torch.full_like(targets, NULL_LABEL), targets]))
        else:
            context = self.embedding(targets)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        shape = (targets.shape[0], 1, IMAGE_SIZE, IMAGE_SIZE)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=context.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        sample = latents.to(device) * self.scheduler.init_noise_sigma

        # Guidance overshoots at the noisy end, where DDIM clips its estimate of the image; the noise must then be
        # taken from the clipped estimate, or the two disagree and samples drift to other digits.
        options = accepted_options(self.scheduler, generator=generator, use_clipped_model_output=True)
        halves = {len(context): context, len(targets): context[-len(targets) :]}
        sample = denoise(
            lambda noisy, t: self.unet(noisy, t, encoder_hidden_states=halves[len(noisy)]).sample,
            self.scheduler,
            sample,
            guidance=guidance,
            step_options=options,
            timesteps=self.progress_bar(self.scheduler.timesteps),
            guided=guided_steps(guidance_until, len(self.scheduler.timesteps)),
        )
        images = _convert(sample.clamp(-1.0, 1.0), output_type)
        return DigitsOutput(images=images) if return_dict else (images,)


def _as_labels(labels: torch.Tensor | Sequence[int] | int) -> torch.Tensor:
    """Labels in any accepted form -> int64 tensor (B,), checked to be within 0-10."""
    tensor = torch.as_tensor([labels] if isinstance(labels, int) else labels, dtype=torch.int64)
    if tensor.ndim != 1 or tensor.numel() == 0:
        raise ValueError(f"labels must be one digit or a non-empty list of digits, got shape {tuple(tensor.shape)}")
    if int(tensor.min()) < 0 or int(tensor.max()) > NULL_LABEL:
        raise ValueError(f"labels must lie in 0-9 (or {NULL_LABEL} for none), got {tensor.tolist()}")
    return tensor


def _convert(images: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list[Image.Image]:
    """Images (B, 1, 32, 32) in [-1, 1] -> the requested output type."""
    if output_type == "pt":
        return images
    array = (images.float().cpu() / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return array
    return [Image.fromarray((picture[..., 0] * 255).round().astype(np.uint8)) for picture in array]
