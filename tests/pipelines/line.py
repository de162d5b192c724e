"""One line of the tables: a pipeline, what is done to it, and how it comes out."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdiff_fx import (
    PreparedUNet,
    QDiffConfig,
    QuantizedUNet,
    calibrate,
    collect_calibration_data,
    convert_qdiff,
    prepare_qdiff,
)
from qdiff_fx.errors import QDiffError
from qdiff_fx.sampling.denoiser import denoiser_name, denoiser_of

STEPS = 3
ENOUGH = 10.0
"""dB that a drawing keeps, of random weights in 8 bits. Where rows or arguments are mixed up, less than 3 are left."""
WORKS, REFUSED, NOT_EVEN_FLOAT = "works", "refused", "–"

Act = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """How a line came out in one type: `WORKS`, `REFUSED` with a sentence, or the float pipeline fails by itself."""

    kind: str
    said: str = ""


@dataclass(frozen=True)
class Line:
    """A pipeline and what is done to it.

    Attributes:
        name: what the table calls it.
        build: makes the pipeline, in float32.
        call: makes the arguments of a drawing, beside steps and generator.
        before: is done to the pipeline before its network is quantized.
        after: is done to it with the quantized network in its place; and to the float one it is compared with.
        unet: the builder of a pipeline with the same network, captured once for all lines that have it.
        needs: packages without which it cannot be tried.
        enough: dB that have to be left.
    """

    name: str
    build: Callable[[], Any]
    call: Callable[[], Mapping[str, Any]] = dict
    before: Act | None = None
    after: Act | None = None
    unet: Callable[[], Any] | None = None
    needs: Sequence[str] = ()
    enough: float = ENOUGH

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def outcome(self, dtype: torch.dtype) -> Outcome:
        """What happens with the quantized network. An error without words of ours is a crash, and passes."""
        call = in_dtype(self.call(), dtype)
        try:
            expected = drawn(self._changed(self._changed(self._made(dtype), self.before), self.after), call)
        except Exception as error:  # whatever diffusers does not do by itself
            return Outcome(NOT_EVEN_FLOAT, f"diffusers by itself: {type(error).__name__}")
        try:
            pipe = self._changed(self._made(dtype), self.before)
            self._quantize(pipe, call, dtype)
            actual = drawn(self._changed(pipe, self.after), call)
        except QDiffError as error:
            return Outcome(REFUSED, sentence(error))
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        kept = decibels(expected, actual)
        assert kept > self.enough, f"{kept:.1f} dB are left"
        return Outcome(WORKS)

    def _quantize(self, pipe: Any, call: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Exchange its network for a quantized one; where only what is done afterwards differs, for the same one."""
        if self.after is None or self.before is not None:
            found = quantized(pipe, call, None if self.unet is None else (self.unet, dtype))
        else:
            key = (self.build, dtype)
            found = copy.deepcopy(_QUANTIZED.setdefault(key, _QUANTIZED.get(key) or quantized(pipe, call, None)))
        setattr(pipe, denoiser_name(pipe), found)

    def _made(self, dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        pipe = self.build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(dtype)

    @staticmethod
    def _changed(pipe: Any, act: Act | None) -> Any:
        return pipe if act is None else (act(pipe) or pipe)


_QUANTIZED: dict[Any, QuantizedUNet] = {}
_PREPARED: dict[Any, PreparedUNet] = {}


def quantized(pipe: Any, call: Mapping[str, Any], key: Any) -> QuantizedUNet:
    """The pipeline's network, calibrated on what is going to be drawn; captured anew if there is no key."""
    torch.manual_seed(1)
    steps = call.get("num_inference_steps", STEPS)
    inputs = {key: value for key, value in call.items() if key != "num_inference_steps"}
    data = collect_calibration_data(
        pipe, num_samples=1, num_inference_steps=steps, seed=0, inputs=inputs, progress=False
    )
    prepared = _PREPARED.get(key) or prepare_qdiff(denoiser_of(pipe), QDiffConfig(timestep_bins=4), data[0])
    if key is not None:
        _PREPARED[key] = prepared
        prepared = copy.deepcopy(prepared)  # with what it saw of no other line's data
    calibrate(prepared, data, progress=False)
    return convert_qdiff(prepared)


@torch.no_grad()
def drawn(pipe: Any, call: Mapping[str, Any]) -> Tensor:
    """What the pipeline draws from one seed, as one tensor."""
    torch.manual_seed(2)
    result = pipe(**{"num_inference_steps": STEPS} | call, generator=torch.Generator().manual_seed(7))
    return as_tensor(result[0] if isinstance(result, tuple) else next(iter(vars(result).values())))


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Embeddings and latents among the arguments are of the pipeline's type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: in_dtype(item, dtype) for key, item in value.items()}
    return [in_dtype(item, dtype) for item in value] if isinstance(value, list) else value


def as_tensor(images: Any) -> Tensor:
    """Of images, frames, embeddings or sound, whatever they come as."""
    if isinstance(images, Sequence):
        return torch.stack([as_tensor(image) for image in images])
    return images if isinstance(images, Tensor) else torch.from_numpy(np.asarray(images))


def decibels(expected: Tensor, actual: Tensor) -> float:
    expected, actual = expected.double(), actual.double()
    return float(20 * torch.log10(expected.norm() / (expected - actual).norm()))


def sentence(error: QDiffError) -> str:
    """What the error says, as a cell of a table."""
    return " ".join(str(error).split()).replace("|", "\\|")
