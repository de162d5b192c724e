"""Ways of drawing a whole image: torch, this package, SDNQ; OpenVINO's are in `openvino.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.rivals.openvino_pipeline import OPENVINO_PIPELINES
from benchmarks.variants import make_config
from benchmarks.whole.subject import PARTS, UNET, Digits, Subject

FLOAT = "float"
"""The folder of the float pipeline, which everybody is made from."""
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Contender(Protocol):
    """One way to draw: prepared once, then loaded by the process that is timed."""

    @property
    def artifact(self) -> str:
        """Name of the folder that `prepare` writes; `FLOAT` where there is nothing to prepare."""

    def prepare(self, subject: Subject, floats: Path, folder: Path) -> None:
        """Quantize or convert the float pipeline in the one folder into the other, which is there and empty."""

    def load(self, subject: Subject, floats: Path, folder: Path) -> Any:
        """The pipeline, to be called as diffusers' are."""


@dataclass(frozen=True)
class Plain:
    """The float pipeline as it is."""

    dtype: torch.dtype

    artifact = FLOAT

    def prepare(self, subject: Subject, floats: Path, folder: Path) -> None:
        raise NotImplementedError("there is nothing to prepare")

    def load(self, subject: Subject, floats: Path, folder: Path) -> Any:
        return subject.load(folder, self.dtype)


@dataclass(frozen=True)
class Ours:
    """All parts quantized by this package; the variant says how the UNet is, the others are as nobody says otherwise.

    The dtype is what the pipeline computes in between integers, and what is in float in memory.

    Random weights are rounded to nearest, on one image of two steps: what they are has no part in how long they take.
    """

    variant: str
    dtype: torch.dtype = torch.float32

    @property
    def artifact(self) -> str:
        return f"native-{self.variant}"

    def prepare(self, subject: Subject, floats: Path, folder: Path) -> None:
        if isinstance(subject, Digits):
            self._prepare_digits(subject, floats, folder)
            return
        from qdiff_fx.sources import SampleRequest, Source
        from qdiff_fx.workflow.job import Job
        from qdiff_fx.workflow.parts import wanted_parts
        from qdiff_fx.workflow.pipeline import quantize_pipeline

        source = Source(subject.name, subject.load(floats), [subject.asked["prompt"]])
        config = replace(make_config(self.variant, 1000), weight_rounding="nearest")
        parts = tuple(
            replace(part, config=replace(part.config or config, weight_rounding="nearest"))
            for part in wanted_parts(None)[1]
        )
        quantize_pipeline(source, Job(config, SampleRequest(1, 2), parts=parts), folder)

    def _prepare_digits(self, subject: Digits, floats: Path, folder: Path) -> None:
        import qdiff_fx

        pipe = subject.load(floats)
        data = qdiff_fx.collect_calibration_data(
            pipe,
            num_samples=10,
            num_inference_steps=subject.steps,
            seed=1,
            inputs={"labels": list(range(10))},
            guidance_scale=subject.guidance,
        )
        qdiff_fx.save_qdiff(qdiff_fx.quantize(pipe.unet, make_config(self.variant, 1000), data, budget=None), folder)

    def load(self, subject: Subject, floats: Path, folder: Path) -> Any:
        import qdiff_fx

        if isinstance(subject, Digits):
            return subject.load(floats, self.dtype, unet=qdiff_fx.load_qdiff(folder))
        return subject.load(folder, self.dtype)


@dataclass(frozen=True)
class SDNQ:
    """Its 8-bit weights and matrix products on the CPU, which it has OpenVINO compute where that is installed."""

    artifact = FLOAT

    def prepare(self, subject: Subject, floats: Path, folder: Path) -> None:
        raise NotImplementedError("there is nothing to prepare")

    def load(self, subject: Subject, floats: Path, folder: Path) -> Any:
        from sdnq import sdnq_post_load_quant  # of no extra of ours

        pipe = subject.load(folder)
        for place in {each.split(".")[0] for each in subject.parts.values()}:
            network = sdnq_post_load_quant(
                getattr(pipe, place),
                weights_dtype="int8",
                quant_conv=True,
                use_quantized_matmul=True,
                use_quantized_matmul_conv=True,
            )
            setattr(pipe, place, network)
        return pipe


CONTENDERS: Mapping[str, Contender] = {
    "torch-fp32": Plain(torch.float32),
    "torch-bf16": Plain(torch.bfloat16),
    **OPENVINO_PIPELINES,
    "sdnq-int8": SDNQ(),
}


def get_contender(name: str) -> Contender:
    """A rival by its name, or ours: ``native-VARIANT[-DTYPE]``; raises ValueError with the names that are known."""
    if name in CONTENDERS:
        return CONTENDERS[name]
    if (match := re.fullmatch(rf"native-(w\d.*?)(?:-({'|'.join(HALVES)}))?", name)) is not None:
        make_config(match[1], 1000)
        return Ours(match[1], HALVES.get(match[2], torch.float32))
    raise ValueError(f"unknown backend {name!r}; known: {', '.join(CONTENDERS)}, native-w8a8, native-w4a8-float16…")


def places() -> tuple[str, ...]:
    """What is timed of an image, in the order of the table."""
    return (*PARTS, "rest")


__all__ = ["FLOAT", "UNET", "Contender", "get_contender", "places"]
