"""From a source to the folder of a whole pipeline, its networks quantized."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdiff_fx.atomic import replacing_folder
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.sources import Source, SourceError
from qdiff_fx.workflow.convert import converted
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.phases import Decided
from qdiff_fx.workflow.run import Announce, calibrated, work_folder

AS_SAVED = "reference"
"""The backend that networks are converted for which are saved only: it prepares nothing to run."""


@dataclass(frozen=True)
class DonePipeline:
    """A finished job.

    Attributes:
        networks: by what they are in the pipeline: "unet", "vae.decoder".
        decided: about the network that denoises; None where the job is about other parts alone.
        job: as it was done.
        left: parts that stay in float, with the reasons.
    """

    networks: Mapping[str, QuantizedUNet]
    decided: Decided | None
    job: Job
    left: Mapping[str, str]


def quantize_pipeline(
    source: Source,
    job: Job,
    out: str | os.PathLike[str],
    *,
    resume_dir: str | os.PathLike[str] | None = None,
    samples_dir: str | os.PathLike[str] | None = None,
    memory_bytes: int | None = None,
    announce: Announce | None = None,
    workers: Workers = ALONE,
    progress: bool | Progress = True,
) -> DonePipeline | None:
    """As `qdiff_fx.workflow.run.quantize`, for all that the job wants of a pipeline, which is saved as a whole.

    `DiffusionPipeline.from_pretrained(out)` loads it. Afterwards the source's pipeline has the quantized networks.

    Raises:
        SourceError: the source is no pipeline that can be saved.
        QDiffError: what is wrong, in words; nothing half-written stays.
    """
    if not hasattr(source.pipe, "save_pretrained"):
        raise SourceError("it is no pipeline of diffusers", where=source.identifier, fix="Leave out --parts")
    with workers.together():
        folder = work_folder(resume_dir, source, job, workers, samples_dir)
        found = calibrated(source, job, folder, memory_bytes, announce, workers, progress)
        if found is None:
            return None
        done = None
        if workers.leads:
            network, parts = converted(found, AS_SAVED, source.identifier, progress)
            named = {} if network is None else {source.name: network}
            named |= {part.name: each for part, each in parts.items()}
            pipe = source.quantized(network, parts)
            with phase(progress, "writing", None, "folder"), replacing_folder(Path(out)) as staging:
                pipe.save_pretrained(staging)
            done = DonePipeline(named, found.decided, found.job, found.left)
        workers.barrier()
        return done
