"""What a pipeline is to draw, in its own arguments: prompts, pictures, how much these weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor, nn

from qdiff_fx.calibration.collect import NOT_PER_SAMPLE
from qdiff_fx.errors import ConfigError
from qdiff_fx.sources.parts import CONTROLNET

PROMPT, EMBEDDED = "prompt", "prompt_embeds"
PICTURES = ("image", "control_image")
DECIDED = {
    "num_inference_steps": "Give steps=",
    "generator": "Give seed=",
    **dict.fromkeys(
        ("batch_size", "num_images_per_prompt", "latents", "output_type", "return_dict"),
        "Leave it out: it is chosen for calibration",
    ),
}
"""Arguments that are not what is drawn, and what says them."""


def in_turn(given: Mapping[str, Any], numbers: range) -> dict[str, Any]:
    """The arguments for images of these numbers: item `number % n` of what has n items, one for each image."""
    return {name: _items(value, numbers) if _each(name, value) else value for name, value in given.items()}


def check_subjects(given: Mapping[str, Any], takes: Mapping[str, Any], pipeline: str) -> None:
    """Raises ConfigError for arguments that the pipeline has not, that are not what is drawn, or of different numbers.

    Args:
        given: by name.
        takes: all that it has.
        pipeline: its class.
    """
    for name in given:
        if name in DECIDED:
            raise ConfigError(f"{name} is not what is drawn", where="data", fix=DECIDED[name])
        if name not in takes:
            raise ConfigError(f"{pipeline} takes no {name!r}", where="data", fix="Give arguments that it has")
    counts = {name: len(value) for name, value in given.items() if _each(name, value)}
    if 0 in counts.values() or len(set(counts.values()) - {1}) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ConfigError(f"there are {told}", where="data", fix="Give as many of each, or one for all images")


def missing_pictures(pipe: Any, given: Mapping[str, Any], takes: Mapping[str, Any]) -> list[str]:
    """Arguments without which a pipeline with a ControlNet does not draw."""
    if not isinstance(getattr(pipe, CONTROLNET, None), nn.Module):
        return []
    return [name for name in PICTURES if name in takes and name not in given]


def _each(name: str, value: Any) -> bool:
    """Whether there is one item for each image, or one and the same for all."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 1
    if name in NOT_PER_SAMPLE or not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return False
    return not (isinstance(value, tuple) and all(isinstance(each, Real) for each in value))


def _items(value: Any, numbers: range) -> Any:
    places = [number % len(value) for number in numbers]
    return [value[place] for place in places] if isinstance(value, Sequence) else value[places]
