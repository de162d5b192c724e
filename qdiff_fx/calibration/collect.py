"""Timestep-aware calibration data: run the float sampler, keep every c-th step's inputs (Q-Diffusion, section 4.1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.calibration.data import FILE_NAME, FINGERPRINT, TIMESTEP, CalibrationData
from qdiff_fx.calibration.fingerprint import WHAT_WAS_DRAWN, inputs_fingerprint, source_fingerprint
from qdiff_fx.calibration.in_flight import InFlight
from qdiff_fx.calibration.plan import CollectionPlan, samples_at_once
from qdiff_fx.calibration.record import Record
from qdiff_fx.calibration.recorder import TrajectoryRecorder, recorded_bytes
from qdiff_fx.calibration.steps import Steps
from qdiff_fx.checkpoint import differing
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import CalibrationError
from qdiff_fx.progress import Phase, Progress, phase
from qdiff_fx.sampling.recorder import watching
from qdiff_fx.sampling.samplers import Sampler, length_of_schedule, make_sampler

Inputs = Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None

NOT_PER_SAMPLE = frozenset(
    {"timesteps", "sigmas", "callback_on_step_end_tensor_inputs", "control_guidance_start", "control_guidance_end"}
    | {"controlnet_conditioning_scale", "ip_adapter_image", "ip_adapter_image_embeds"}
)
"""Arguments of pipelines whose lists are for all samples, however many items they have: schedules, mostly."""
MEMORY_CAP = 2 << 30
"""Bytes that are recorded at most where nobody says."""


def collect_calibration_data(
    source: Any,
    *,
    scheduler: Any = None,
    num_samples: int,
    num_inference_steps: int,
    every: int = 1,
    batch_size: int | None = None,
    seed: int,
    inputs: Inputs = None,
    guidance_scale: float | None = None,
    memory_cap_bytes: int = MEMORY_CAP,
    resume_dir: str | os.PathLike[str] | None = None,
    workers: Workers = ALONE,
    observing: InFlight | None = None,
    progress: bool | Progress = True,
) -> CalibrationData:
    """Sample with the float network and record its inputs `(x_t, t, conditioning)` at every c-th step.

    The same seed gives the same data: what is drawn together is always the same, see `plan.GROUP`. Paper settings: 256
    samples of 20 steps (CIFAR-10, LSUN); 128 samples of 25 steps with both guidance halves (Stable Diffusion).

    Args:
        source: a diffusers pipeline, or the network alone together with `scheduler`.
        scheduler: replaces the pipeline's own while recording.
        num_samples: n; each contributes one row per recorded step, two with guidance.
        num_inference_steps: steps of the sampler.
        every: c; the last step is always recorded.
        batch_size: changes nothing any more.
        inputs: the pipeline's arguments (prompts, labels) or the network's (conditioning), either as a mapping,
            whose lists and tensors of num_samples items are cut into groups, or as a function of the number of
            samples in a group, which may draw from torch's global generator. A schedule (``timesteps``, ``sigmas``)
            and a tuple of numbers (a size) are for all samples, and so is a prompt that is one string. Where a bare
            network is guided, they hold 2n rows: first all unconditional ones, then all conditional ones.
        guidance_scale: classifier-free guidance; None leaves a pipeline its default and a bare network unguided.
        memory_cap_bytes: refuse, after the first two records, if all of them would take more.
        resume_dir: keep every finished run of the sampler there, and skip the runs found there. Each is kept with
            digests of the weights, the scheduler's settings and what was drawn; data of other ones, or of a version
            that kept none, are refused.
        workers: processes that call this together, each with the same arguments; every one draws its share, and all of
            them get everything.
        observing: whose observers see some of the calls meanwhile; of each process those that it draws itself.
        progress: show a progress bar, or report to this.
    Raises:
        CalibrationError: the source cannot be sampled from; its network gives NaN; too much memory; `resume_dir` holds
            other data.
        ConfigError: a count below 1, or `every` above `num_inference_steps`.
    """
    sampler = make_sampler(source, scheduler, num_inference_steps, guidance_scale)
    plan = CollectionPlan(
        network=type(sampler.unet).__name__,
        scheduler=type(sampler.scheduler).__name__,
        num_train_timesteps=length_of_schedule(sampler.scheduler),
        num_samples=num_samples,
        num_inference_steps=num_inference_steps,
        every=every,
        group=samples_at_once(sampler.unet),
        seed=seed,
        guidance_scale=guidance_scale,
    )
    fingerprint = {} if resume_dir is None else source_fingerprint(source, sampler.scheduler)
    if observing is not None:
        observing.begin(plan, fingerprint)
    drawn: dict[int, CalibrationData] = {}
    shared = workers.share(list(plan.trajectories()))
    with workers.together(), phase(progress, "sampling", sum(map(len, shared)), "sample") as bar:
        for samples in shared:
            folder = None if resume_dir is None else Path(resume_dir) / f"samples-{samples.start:06d}"
            drawn[samples.start] = _run_or_resume(
                sampler, plan, samples, inputs, memory_cap_bytes, folder, fingerprint, bar, observing
            )
        if observing is not None:
            observing.end()
    return _joined(drawn, plan, workers)


def _joined(drawn: Mapping[int, CalibrationData], plan: CollectionPlan, workers: Workers) -> CalibrationData:
    """The runs of all processes in the order of their samples."""
    if workers.count > 1:
        mine = CalibrationData([record for data in drawn.values() for record in data._records])
        description, tensors = mine.to_tensors()
        report = {**description, "runs": [[start, len(data), data.metadata] for start, data in drawn.items()]}
        drawn = {}
        for found, received in workers.gather(report, tensors):
            records, first = CalibrationData.of_tensors(found, received), 0
            for start, count, metadata in found["runs"]:
                run = records[first : first + count]
                drawn[start], first = CalibrationData(run._records, metadata), first + count
    runs = [drawn[start] for start in sorted(drawn)]
    timestep = runs[-1].metadata.get(TIMESTEP, "")
    return CalibrationData([record for run in runs for record in run], asdict(plan) | {TIMESTEP: timestep})


def _run_or_resume(
    sampler: Sampler,
    plan: CollectionPlan,
    samples: range,
    inputs: Inputs,
    cap: int,
    folder: Path | None,
    fingerprint: Mapping[str, str],
    bar: Phase,
    observing: InFlight | None,
) -> CalibrationData:
    """One run of the sampler. It depends on the seed and its own samples only, so resuming changes nothing."""
    seed = plan.seed * 1_000_003 + samples.start
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)  # for `inputs`, and for samplers that take no generator
        conditioning = inputs(len(samples)) if callable(inputs) else _cut(inputs or {}, samples, plan, sampler.halves)
        if folder is None:
            return _run(sampler, plan, samples, conditioning, seed, cap, bar, observing)
        known = {**fingerprint, WHAT_WAS_DRAWN: inputs_fingerprint(conditioning)}
        data = _resumed(folder, plan, known)
        if data is not None:
            bar.skip(len(samples))
            if observing is not None:
                observing.resumed(samples.start // plan.group, data._records)
        else:
            data = _run(sampler, plan, samples, conditioning, seed, cap, bar, observing)
            data.metadata[FINGERPRINT] = known
            data.save(folder)
    return data


def _resumed(folder: Path, plan: CollectionPlan, fingerprint: Mapping[str, str]) -> CalibrationData | None:
    """A finished run found in the folder, or None.

    Raises:
        CalibrationError: it was recorded with other settings, weights or inputs; the message names what differs.
    """
    if not (folder / FILE_NAME).is_file():
        return None
    data = CalibrationData.load(folder)
    changed = differing({key: data.metadata.get(key) for key in asdict(plan)}, asdict(plan))
    kept = data.metadata.get(FINGERPRINT)
    if not changed and not isinstance(kept, dict):
        raise CalibrationError(
            "it was recorded by an earlier version, which did not note of which weights, prompts and scheduler",
            where=str(folder),
            fix="Use another resume_dir; CalibrationData.load(folder) reads the data as they are",
        )
    found: Mapping[str, str] = {} if changed or kept is None else kept
    changed = changed or differing(found, fingerprint)
    if changed:
        raise CalibrationError(
            f"it was recorded with other settings ({', '.join(changed)})",
            where=str(folder),
            fix="Use another resume_dir, or the same settings",
        )
    return data


def _run(
    sampler: Sampler,
    plan: CollectionPlan,
    samples: range,
    conditioning: Mapping[str, Any],
    seed: int,
    cap: int,
    bar: Phase,
    observing: InFlight | None,
) -> CalibrationData:
    shown = Steps(bar, samples, plan.num_inference_steps)
    recorder = TrajectoryRecorder(
        sampler.unet,
        schedule=lambda: sampler.scheduler.timesteps,
        every=plan.every,
        on_record=partial(_check_memory, plan=plan, samples=samples, cap=cap),
    )
    run = samples.start // plan.group
    watched = nullcontext() if observing is None else observing.watching(sampler.unet, run, recorder)
    with watched, recorder.recording(), watching(sampler.unet, after=shown.see):
        drawn = sampler.sample(len(samples), conditioning, torch.Generator().manual_seed(seed))
    shown.finish()
    rows = recorder.records[-1].count if recorder.records else 0
    if rows == 0 or rows % len(samples) or (drawn is not None and drawn % len(samples)):
        images = "" if drawn is None else f" and drew {drawn} images"
        raise CalibrationError(
            f"the sampler ran the network on {rows} rows for {len(samples)} samples{images}",
            where="inputs",
            fix="They must describe each sample, e.g. one prompt per sample",
        )
    return CalibrationData(recorder.records, asdict(plan) | {TIMESTEP: recorder.timestep})


def _cut(inputs: Mapping[str, Any], samples: range, plan: CollectionPlan, halves: int) -> dict[str, Any]:
    """The part of the inputs that belongs to these samples; what has not one item per sample is for all of them."""

    def part(name: str, value: Any) -> Any:
        if name in NOT_PER_SAMPLE or (isinstance(value, tuple) and all(isinstance(each, Real) for each in value)):
            return value
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == halves * plan.num_samples:
            each = value.unflatten(0, (halves, plan.num_samples))
            return each[:, samples.start : samples.stop].flatten(0, 1)
        if isinstance(value, (list, tuple)) and len(value) == plan.num_samples:
            return value[samples.start : samples.stop]
        return value

    return {name: part(name, value) for name, value in inputs.items()}


def _check_memory(records: list[Record], steps: int, *, plan: CollectionPlan, samples: range, cap: int) -> None:
    """Called after every record; the second (or an only one) shows what all of them will take."""
    if len(records) != min(2, steps):
        return
    needed = recorded_bytes(records, steps) * plan.num_samples // len(samples)
    if needed > cap:
        raise CalibrationError(
            f"recording {plan.num_samples} samples at {steps} steps takes about {needed:,} bytes, the cap is {cap:,}",
            where="memory_cap_bytes",
            fix="Lower num_samples or num_inference_steps, raise every, or raise memory_cap_bytes",
        )
