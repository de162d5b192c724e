"""What is to be done: the configuration, the trajectories, how much of them is looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qdiff_fx.calibration.fingerprint import inputs_fingerprint, source_fingerprint
from qdiff_fx.checkpoint import Checkpoint
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.reconstruction import ReconstructionConfig
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.tuning.finer import Limits

CHOICE = "choice"
ALL_ROWS = 1 << 62


@dataclass(frozen=True)
class WantedPart:
    """A part of a pipeline beside the network that denoises.

    Attributes:
        word: which, see `qdiff_fx.sources.parts`.
        config: what to quantize of it, and how; None: as the network that denoises, but for rules, which name layers.
        finer: what may be added for its layers that matter most, see `qdiff_fx.tuning.finer`; None: nothing.
        by_name: somebody named it: that it cannot be quantized is an error then. Else it stays in float.
    """

    word: str
    config: QDiffConfig | None = None
    finer: Limits | None = None
    by_name: bool = False


@dataclass(frozen=True)
class Job:
    """A network's way from float to a saved folder.

    Attributes:
        config: what to quantize, and how. The length of the training schedule is the source's.
        request: the trajectories that are sampled.
        every: which of their steps are recorded, see `collect_calibration_data`.
        rows: how many recorded rows (one is one sample at one timestep; guidance makes it two) are shown to observers
            and, unless `rounded` is fewer, to the rounding of weights, evenly over trajectories and timesteps;
            `ALL_ROWS` for all; None: what is enough, see `qdiff_fx.workflow.enough`.
        backend: what it is going to run on.
        reconstruction: learn rounding and step sizes besides.
        budget: seconds that it may take; the request's trajectories are then the most there may be.
        at_most: the request's trajectories are the most there may be, also without a budget: as many as are enough.
        parts: what else of the pipeline is quantized, on what the same trajectories show.
        network: whether the network that denoises is quantized at all, or its parts only.
        rounded: how many of the rows are shown to the rounding of weights; None: all of them.
    """

    config: QDiffConfig
    request: SampleRequest
    every: int = 1
    rows: int | None = None
    backend: str = "native"
    reconstruction: ReconstructionConfig | None = None
    budget: float | None = None
    at_most: bool = False
    parts: tuple[WantedPart, ...] = ()
    network: bool = True
    rounded: int | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"{self.rows} is not a positive number", where="rows")
        if self.budget is not None and self.rows is not None:
            raise ConfigError(
                "the budget chooses the rows, and they are given too", where="rows", fix="Give one of the two"
            )

    def config_of(self, part: WantedPart) -> QDiffConfig:
        return replace(self.config, rules=()) if part.config is None else part.config

    def settings(self) -> dict[str, str]:
        """All of it, each thing under the name under which people know it."""
        found = {name: json.dumps(value, sort_keys=True) for name, value in self.config.to_json().items()}
        found |= {
            "number of samples": str(self.request.count),
            "number of steps": str(self.request.steps),
            **({} if self.request.schedule is None else {"schedule": self.request.schedule.text()}),
            "seed": str(self.request.seed),
            "every": str(self.every),
            "number of rows": str(self.rows),
            "number of rows to round by": str(self.rounded),
            "backend": self.backend,
            "reconstruction": json.dumps(self.reconstruction and self.reconstruction.to_json(), sort_keys=True),
            "budget": str(self.budget),
            "number of samples at most": str(self.at_most),
        }
        if self.parts:
            limits = {each.word: each.finer and asdict(each.finer) for each in self.parts}
            parts = {each.word: [self.config_of(each).to_json(), limits[each.word]] for each in self.parts}
            found["parts"] = json.dumps([self.network, parts], sort_keys=True)
        return found


class WorkFolder:
    """Everything that a job has come to, in one folder: run again after whatever killed it, it goes on from there.

    Args:
        folder: made where it is missing; None keeps nothing.
        source, job: what the work belongs to.
        processes: how many share it.
        samples: another folder for the trajectories.
    Raises:
        ArtifactError: it was begun with other weights, prompts or settings, or by another number of processes; or it
            holds something else, or cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        source: Source,
        job: Job,
        *,
        processes: int = 1,
        samples: str | os.PathLike[str] | None = None,
    ):
        self.folder = None if folder is None else Path(folder)
        self._samples = None if samples is None else Path(samples)
        found = {} if folder is None else fingerprint(source, job, processes)
        self._checkpoint = Checkpoint(folder, found, "job")

    def settled(self, job: Job, choose: Callable[[], Job]) -> Job:
        """The job without a budget, with as many trajectories and rows as were chosen when the folder was begun."""
        if job.budget is None:
            return job

        def chosen() -> dict[str, Any]:
            found = choose()
            return {"samples": found.request.count, "rows": found.rows}

        report = self.chosen_once(CHOICE, chosen)
        request = replace(job.request, count=report["samples"])
        return replace(job, budget=None, at_most=False, request=request, rows=report["rows"])

    def chosen_once(self, name: str, choose: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What was chosen when the folder was begun, so that what depends on it goes on; JSON can hold it."""
        found = self._checkpoint.load(name)
        if found is not None:
            return found[1]
        chosen = choose()
        self._checkpoint.save(name, {}, chosen)
        return chosen

    def of(self, part: str) -> WorkFolder:
        """The one of a part of the pipeline, inside this one. What it holds says itself what it belongs to."""
        found = copy(self)
        found.folder = None if self.folder is None else self.folder / "parts" / part
        return found

    @property
    def samples(self) -> Path | None:
        """Of trajectories."""
        return self._samples or self._part("samples")

    @property
    def statistics(self) -> Path | None:
        """Of what observers have seen."""
        return self._part("statistics")

    @property
    def rounding(self) -> Path | None:
        """Of rounded layers."""
        return self._part("rounding")

    @property
    def units(self) -> Path | None:
        """Of reconstructed units."""
        return self._part("units")

    def _part(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name


def fingerprint(source: Source, job: Job, processes: int) -> Mapping[str, str]:
    """All that the result depends on, in digests or short texts, by names that can be told to people."""
    scheduler = source.make_scheduler(job.request.steps) or source.pipe.scheduler
    return {
        **source_fingerprint(source.pipe, scheduler),
        "set of prompts or labels": inputs_fingerprint(source.subjects(job.request)),
        "number of processes": str(processes),
        **job.settings(),
    }
