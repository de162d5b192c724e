"""The parts of a pipeline beside the network that denoises: quantized on what the same trajectories show of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdiff_fx.api import prepare_qdiff
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.fingerprint import inputs_fingerprint, source_fingerprint
from qdiff_fx.calibration.plan import samples_at_once
from qdiff_fx.calibration.record import as_record
from qdiff_fx.config import QDiffConfig, Rule, bits_of
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import CalibrationError, ConfigError, QDiffError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.quant.digest import digest
from qdiff_fx.quant.qparams import SIXTEEN_BITS
from qdiff_fx.sources import RecordedSource, SampleRequest, Source
from qdiff_fx.sources.heard import Heard
from qdiff_fx.sources.parts import (
    CONTROLNET,
    TEXT,
    UNET,
    USUAL,
    VAE,
    CannotRunError,
    NothingToQuantizeError,
    Part,
    check_words,
    parts_of,
)
from qdiff_fx.tuning.finer import Limits, finer, finer_passes
from qdiff_fx.workflow.enough import enough, rounded_by
from qdiff_fx.workflow.estimate import PhaseEstimate, estimate
from qdiff_fx.workflow.job import Job, WantedPart, WorkFolder
from qdiff_fx.workflow.measure import Costs, measure
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.phases import EXAMPLES, decide, draw
from qdiff_fx.workflow.shared import calibrate_together

HEARD = "parts"
EXAMPLE_STEPS = 2
FEW_TRAJECTORIES = 8
"""Where the network that denoises is not quantized."""


WIDE_INPUTS = (Rule("*", act_bits=SIXTEEN_BITS),)
FINER = {VAE: Limits()}
"""What may be added to parts whose error is seen as it is, for the few layers that most of it comes from."""


def recipe(word: str) -> QDiffConfig | None:
    """How a part is quantized where nobody says; None: as the network that denoises, which a ControlNet is half of.

    A decoder has few weights, and its error is seen as it is: 8 bits, and `FINER` adds some. In text encoders a few
    numbers are a hundred times as large as the others, which 8 bits do not hold beside them: their layers read 16. They
    run once per image.
    """
    if word == CONTROLNET:
        return None
    return QDiffConfig(rules=WIDE_INPUTS) if word == TEXT else QDiffConfig()


def config_of(text: str) -> QDiffConfig:
    """The configuration of a part's bits: "w4a8", "w8a16".

    Raises:
        ConfigError: they have another form, or are not supported.
    """
    bits = bits_of(text) or {}
    if bits.get("act_bits") != SIXTEEN_BITS:
        return QDiffConfig.of_bits(text)
    del bits["act_bits"]
    return QDiffConfig(**bits, rules=WIDE_INPUTS)


def wanted_parts(
    words: Sequence[str] | None, bits: Mapping[str, str | QDiffConfig] | None = None
) -> tuple[bool, tuple[WantedPart, ...]]:
    """Whether the network that denoises is quantized, and what else.

    Args:
        words: which; None: all that every image takes, as far as they can be.
        bits: how, where it is not the usual `recipe`. A configuration is taken as it is; of a decoder bits are those
            that most layers have.
    Raises:
        ConfigError: there are no such parts, or bits are of one that is not quantized, or none at all.
    """
    chosen = check_words(USUAL if words is None else words)
    given = bits or {}
    if idle := [word for word in given if word not in chosen]:
        named = ", ".join(chosen)
        raise ConfigError(f"{idle[0]!r} is not among the parts ({named})", where="bits", fix="Name it in parts too")
    others = [word for word in chosen if word != UNET]
    return UNET in chosen, tuple(_wanted(word, given.get(word), by_name=words is not None) for word in others)


def _wanted(word: str, bits: str | QDiffConfig | None, *, by_name: bool) -> WantedPart:
    if isinstance(bits, QDiffConfig):
        return WantedPart(word, bits, by_name=by_name)
    return WantedPart(word, recipe(word) if bits is None else config_of(bits), FINER.get(word), by_name)


@dataclass(frozen=True)
class ReadyPart:
    """A part that is captured and timed.

    Attributes:
        each: calls of it for every image.
        choosing: seconds that it takes to choose which of its layers get finer bits.
    """

    part: Part
    wanted: WantedPart
    prepared: PreparedUNet
    costs: Costs
    each: float
    choosing: float = 0.0


class OtherParts:
    """All other parts of a pipeline that a job wants, from being found to being calibrated.

    Args:
        source, job: whose.
    Attributes:
        left: why parts stay in float that nobody asked for by name.
    Raises:
        ConfigError: one that was asked for is not there, or the pipeline cannot run with what it has.
    """

    def __init__(self, source: Source, job: Job):
        self.left: dict[str, str] = {}
        self._source, self._job = source, job
        self._wanted: dict[Part, WantedPart] = {}
        self._ready: list[ReadyPart] = []
        for wanted in job.parts:
            with self._or_left(wanted, wanted.word):
                self._wanted |= dict.fromkeys(parts_of(source.pipe, wanted.word), wanted)
        self._heard = Heard(source.pipe, list(self._wanted))

    def example(self) -> Mapping[str, Any]:
        """An example call of the network that denoises; what happens around it all other parts are listened to."""
        if self._heard.images is None:
            with self._heard.listening():
                return self._source.example_inputs(EXAMPLES)
        with self._heard.listening():
            self._source.run(SampleRequest(1, EXAMPLE_STEPS))
        return self._source.example_inputs(EXAMPLES)

    def prepare(self, progress: bool | Progress) -> None:
        """Capture every part that was heard, and time it.

        Raises:
            QDiffError: one that was asked for cannot be captured.
        """
        for part, wanted in self._wanted.items():
            with self._or_left(wanted, part.name), named(progress, part.name):
                self._ready.append(self._prepared(part, wanted, progress))
        self._heard.forget()

    def _prepared(self, part: Part, wanted: WantedPart, progress: bool | Progress) -> ReadyPart:
        data = self._heard.data(part)
        source = RecordedSource("", part.network, data)
        with phase(progress, "capturing", None, "network"):
            begun = time.monotonic()
            example = _of_two(source.example_inputs(EXAMPLES))
            prepared = prepare_qdiff(part.network, self._config_of(part, wanted), example, backend=self._job.backend)
            seconds = time.monotonic() - begun
        each = source.request.count / (EXAMPLES if self._heard.images is None else 1)
        with phase(progress, "measuring", None, "step"):
            # Text encoders read few numbers; pictures are looked at one by one, for memory's sake.
            count = EXAMPLES if part.word == TEXT else EXAMPLES * samples_at_once(part.network)
            costs = measure(source, prepared, example, count, seconds)
            chosen_in = 0.0 if wanted.finer is None else finer_passes(prepared, data) * costs.step / costs.rows
        return ReadyPart(part, wanted, prepared, replace(costs, samples=costs.rows), each, chosen_in)

    def _config_of(self, part: Part, wanted: WantedPart) -> QDiffConfig:
        config = self._job.config_of(wanted)
        if part.word != CONTROLNET:
            return config
        return replace(config, num_train_timesteps=self._source.num_train_timesteps)

    @contextmanager
    def _or_left(self, wanted: WantedPart, name: str) -> Iterator[None]:
        try:
            yield
        except QDiffError as error:
            if wanted.by_name:
                error.add_note(f"This happened to {name}, which parts= names.")
                raise
            if isinstance(error, CannotRunError):
                raise
            if isinstance(error, NothingToQuantizeError):
                return
            self.left[name] = f"{name} stays in float: {error}"

    def job_of(self, ready: ReadyPart, count: int) -> Job:
        """Of a part, where so many images are drawn."""
        steps = self._job.request.steps if ready.part.word == CONTROLNET else 1
        request = SampleRequest(max(1, round(count * ready.each)), steps)
        return enough(ready.costs, Job(ready.prepared.qconfig, request, backend=self._job.backend))

    @property
    def of_a_step(self) -> float:
        """Seconds that parts take in float beside every step of the network that denoises."""
        return sum(ready.costs.step for ready in self._ready if ready.part.word == CONTROLNET)

    def phases(self, count: int, processes: int) -> tuple[PhaseEstimate, ...]:
        """What the parts will take, where so many images are drawn."""
        return tuple(
            replace(each, name=f"{ready.part.name}: {each.name}")
            for ready in self._ready
            for each in (*_choosing(ready), *estimate(ready.costs, self.job_of(ready, count), processes).phases)
        )

    def listening(self, job: Job, folder: WorkFolder) -> AbstractContextManager[None]:
        """While trajectories are drawn; what is heard is kept beside them, where these are."""
        if not self._ready:
            return nullcontext()
        return self._heard.listening(None if folder.samples is None else self._kept_in(folder.samples, job))

    def draw(self, job: Job, folder: WorkFolder, progress: bool | Progress, workers: Workers) -> None:
        """Images, where the network that denoises is not quantized: for what the others are called with on the way."""
        if self._heard.images is not None:
            draw(self._source, job, folder, progress, workers)
            return
        with phase(progress, "sampling", None, "prompt"):  # which ends where denoising begins
            self._source.example_inputs(job.request.count)

    def _kept_in(self, samples: Path, job: Job) -> Path:
        """A folder of its own for all that decides what is heard."""
        source, request = self._source, job.request
        known = source_fingerprint(source.pipe, source.scheduler_for(request) or source.pipe.scheduler)
        drawn = [request.count, request.steps, request.seed, inputs_fingerprint(source.subjects(request))]
        return samples / HEARD / digest([repr(sorted(known.items())), repr(drawn)])[:16]

    def calibrate(
        self, job: Job, folder: WorkFolder, workers: Workers, progress: bool | Progress
    ) -> dict[Part, PreparedUNet]:
        """Every part, with what was heard: what it computes is known, and its weights are rounded.

        Raises:
            CalibrationError: trajectories were drawn before by somebody who did not listen.
            QDiffError: of a part that was asked for: what was heard is not finite, or does not fit one capture.
        """
        if not self._ready:
            return {}
        self._heard.share(workers)
        if self._heard.images is not None and self._heard.images < job.request.count:
            raise CalibrationError(
                "trajectories are there without what the other parts of the pipeline are called with",
                where=str(folder.samples or "parts"),
                fix="Use another folder, or leave out parts=",
            )
        found: dict[Part, PreparedUNet] = {}
        for ready in self._ready:
            with self._or_left(ready.wanted, ready.part.name):
                found[ready.part] = self._calibrated(ready, job, folder, workers, progress)
        return found

    def _calibrated(
        self, ready: ReadyPart, job: Job, folder: WorkFolder, workers: Workers, progress: bool | Progress
    ) -> PreparedUNet:
        name, own = ready.part.name, self.job_of(ready, job.request.count)
        inside = folder.of(name)
        with named(progress, name):
            data = self._heard.data(ready.part, own.rows).rebatched(ready.costs.rows)
            calibrate_together(ready.prepared, data, workers, resume_dir=inside.statistics, progress=progress)
            prepared = _finer(ready, data, folder, workers, progress)
            decide(prepared, rounded_by(data, own, ready.costs.rows), own, inside, progress, workers)
        return prepared


def _choosing(ready: ReadyPart) -> tuple[PhaseEstimate, ...]:
    if ready.wanted.finer is None:
        return ()
    return (PhaseEstimate("choosing bits", ready.choosing, ready.costs.held_bytes + ready.costs.step_bytes),)


def _finer(
    ready: ReadyPart, data: CalibrationData, folder: WorkFolder, workers: Workers, progress: bool | Progress
) -> PreparedUNet:
    """The part with finer bits where the leading process has chosen them."""
    limits = ready.wanted.finer
    if limits is None:
        return ready.prepared

    def choose() -> Mapping[str, Any]:
        return finer(ready.prepared, data, limits, progress=progress).qconfig.to_json()

    chosen = folder.chosen_once(f"bits of {ready.part.name}", choose) if workers.leads else None
    config = QDiffConfig.from_json(workers.agreed(chosen))
    return ready.prepared if config == ready.prepared.qconfig else ready.prepared.with_config(config)


def _of_two(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same call for at least two samples, by which the batch is told from all else."""
    record = as_record(example)
    return record.rows([0, 0]).arguments if record.count < EXAMPLES else example


def named(progress: bool | Progress, part: str) -> AbstractContextManager[None]:
    """Phases inside the block say whose they are."""
    return progress.of(part) if isinstance(progress, Overall) else nullcontext()
