"""`qdiff_fx.quantize(pipe)`: what is given comes back, quantized."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from qdiff_fx.calibration import CalibrationData
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.progress import Progress
from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules import schedule_of
from qdiff_fx.sources import DrawingSource, RecordedSource, SampleRequest, Source
from qdiff_fx.sources.parts import UNET, check_words
from qdiff_fx.sources.subjects import PROMPT
from qdiff_fx.storage.hub import HUB_ID
from qdiff_fx.workflow.amounts import parse_seconds
from qdiff_fx.workflow.convert import converted
from qdiff_fx.workflow.enough import at_most
from qdiff_fx.workflow.job import Job, WantedPart, WorkFolder
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.parts import wanted_parts
from qdiff_fx.workflow.run import calibrated
from qdiff_fx.workflow.screen import make_screen

BITS = "w4a8"
Given = TypeVar("Given")
Data = CalibrationData | Sequence[str] | Mapping[str, Any] | None
Bits = str | QDiffConfig | Mapping[str, str | QDiffConfig]
Parts = str | Sequence[str] | None


def quantize(
    pipe_or_unet: Given,
    bits: Bits = BITS,
    data: Data = None,
    budget: str | float | None = "30min",
    backend: str = "native",
    *,
    parts: Parts = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Given:
    """Calibrate a pipeline's networks on its own trajectories, round their weights, and put the results in their place.

    Args:
        pipe_or_unet: a pipeline, or its UNet together with `data` that were recorded.
        bits: "w4a8", "w8a8", or a configuration: of the UNet. Or one for each part, {"unet": "w4a8", "vae": "w4a8"};
            those that are not mentioned have 8-bit weights, text encoders inputs of 16 bits, and ControlNets the bits
            of the UNet. Of a decoder they are those that most layers have; the few that most of its error comes from
            get more (docs/pipelines.md).
        data: prompts; or what the pipeline draws in its own arguments, {"prompt": [...], "image": [...]}, where lists
            and tensors have one item for each image and all else is for all of them; or the network's own inputs, from
            `collect_calibration_data` or `calibrating`. None: captions that come with the package, for pipelines that
            take prompts and nothing else.
        budget: the time it may take, "30min" or seconds; as many trajectories and rows as fit are used. None: eight
            trajectories at most (more of few steps), and as many of their rows as a network of its size needs.
        backend: what it is to run on.
        parts: which networks, "unet,vae" or a list of them: "unet", whatever the pipeline calls the network that
            denoises; "controlnet", those beside it; "vae", the decoder of its autoencoder; "text", its text encoders;
            "encoder", that of the autoencoder. None: all but the last, where they can be; what cannot stays in float,
            and a warning says why. With `data` that were recorded, the UNet alone.
        steps: of the sampler, while it is recorded: as many as images are going to be drawn by. None: 25, or those of a
            few-step pipeline (a latent consistency model's 4); those of its schedule where it has one, see
            `with_schedule`.
        seed: of the noise.
        progress: show how far it is, or report to this.
    Returns:
        The same pipeline with quantized networks, or the quantized UNet. Where anything fails it is as it was.
    Raises:
        ConfigError: bits, budget, data or parts that can never work.
        SourceError: a pipeline that does not say what to draw, or has no UNet.
        QDiffError: whatever else is wrong, in words.
    """
    seconds = parse_seconds(budget, "budget") if isinstance(budget, str) else budget
    schedule = schedule_of(getattr(pipe_or_unet, "scheduler", None))
    config, others = _configs(bits)
    network, wanted = _wanted(pipe_or_unet, data, parts, others)
    owner, source = _source(pipe_or_unet, data, network)
    request = _request(source, steps, schedule, seed, budgeted=seconds is not None)
    job = Job(config, request, backend=backend, budget=seconds, at_most=source.draws, parts=wanted, network=network)
    with _shown(progress) as shown, _with_its_bars(source.pipe):
        found = calibrated(source, job, WorkFolder(None, source, job), progress=shown)
        assert found is not None, "nobody was there to stop it"
        quantized, others_quantized = converted(found, backend, source.identifier, shown)
    for line in found.left.values():
        warnings.warn(line, stacklevel=2)
    if quantized is not None:
        quantized.schedule = schedule
    if owner is None:
        return cast(Given, quantized)
    owner.quantized(quantized, others_quantized)
    return pipe_or_unet


def _configs(bits: Bits) -> tuple[QDiffConfig, dict[str, str | QDiffConfig]]:
    """That of the network that denoises, and what is given of other parts."""
    if not isinstance(bits, Mapping):
        return _config(bits), {}
    named = {check_words([word])[0]: each for word, each in bits.items()}
    network = _config(named.pop(UNET, BITS))
    return network, {word: each if isinstance(each, str) else _config(each) for word, each in named.items()}


def _config(bits: object) -> QDiffConfig:
    if isinstance(bits, QDiffConfig):
        return bits
    if not isinstance(bits, str):
        raise ConfigError(f"{bits!r} says no bits", where="bits", fix='Write "w4a8", or give a QDiffConfig')
    return QDiffConfig.of_bits(bits)


def _wanted(
    given: Any, data: Data, parts: Parts, bits: Mapping[str, str | QDiffConfig]
) -> tuple[bool, tuple[WantedPart, ...]]:
    """Whether the network that denoises is quantized, and what else."""
    words = [each.strip() for each in parts.split(",")] if isinstance(parts, str) else parts
    alone = isinstance(given, nn.Module) or isinstance(data, CalibrationData)
    network, wanted = wanted_parts([UNET] if alone and words is None else words, bits)
    if alone and (wanted or not network):
        what = "a network alone has no" if isinstance(given, nn.Module) else "its recorded inputs say nothing about"
        names = [each.word for each in wanted] or [UNET]
        raise ConfigError(
            f"{what} {' or '.join(names)}", where="parts", fix="Give the pipeline, and prompts or nothing as data"
        )
    return network, wanted


def _request(
    source: Source, steps: int | None, schedule: Schedule | None, seed: int, *, budgeted: bool
) -> SampleRequest:
    """How much of it is drawn at most; what was recorded is there already."""
    if isinstance(source, RecordedSource):
        return source.request
    return at_most(source, None, steps, schedule, seed, budgeted=budgeted)


def _source(given: Any, data: Data, network: bool = True) -> tuple[Source | None, Source]:
    """Whoever gets the result in the network's place, and where what is calibrated on comes from."""
    kind = Source if network else DrawingSource
    owner = None if isinstance(given, nn.Module) else kind(_identifier(given), given, *_subjects(data))
    if isinstance(given, (QuantizedUNet, PreparedUNet)):
        raise ConfigError(f"it is a {type(given).__name__} already", where="quantize", fix="Give the float network")
    if isinstance(data, CalibrationData):
        identifier, unet = ("", given) if owner is None else (owner.identifier, owner.unet)
        return owner, RecordedSource(identifier, unet, data)
    if owner is None:
        raise ConfigError(
            "a network alone does not say how it is sampled",
            where="data",
            fix="Give the pipeline; or data that collect_calibration_data or calibrating recorded",
        )
    if data is not None and not isinstance(data, Mapping) and not owner.takes_prompts:
        raise ConfigError(f"{type(given).__name__} takes no prompts", where="data", fix="Leave them out")
    return owner, owner


def _identifier(pipe: Any) -> str:
    """Of the hub; where something lies on this machine is nobody's business."""
    name = getattr(pipe, "name_or_path", None)
    return name if isinstance(name, str) and HUB_ID.fullmatch(name) and not Path(name).exists() else ""


def _subjects(data: Data) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Prompts, and what else the pipeline is given."""
    if not isinstance(data, Mapping):
        return _prompts(data), {}
    others = dict(data)
    return _prompts(others.pop(PROMPT, None)), others


def _prompts(data: CalibrationData | Sequence[str] | None) -> tuple[str, ...]:
    if data is None or isinstance(data, CalibrationData):
        return ()
    prompts = (data,) if isinstance(data, str) else tuple(data)
    if not prompts or not all(isinstance(each, str) for each in prompts):
        raise ConfigError(
            "they are no prompts",
            where="data",
            fix="Give a list of strings, the pipeline's arguments by name, CalibrationData, or nothing at all",
        )
    return prompts


@contextmanager
def _with_its_bars(pipe: Any) -> Iterator[None]:
    """What it says about its own progress is left as it was."""
    before = getattr(pipe, "_progress_bar_config", None)
    try:
        yield
    finally:
        if before is not None:
            pipe._progress_bar_config = before
        elif hasattr(pipe, "_progress_bar_config"):
            del pipe._progress_bar_config


def _shown(progress: bool | Progress) -> AbstractContextManager[bool | Progress]:
    if progress is not True:
        return nullcontext(progress)
    return Overall(make_screen(partial(print, file=sys.stderr), interactive=sys.stderr.isatty()))
