"""``qdiff quantize SOURCE --out DIR``: calibrate on the network's own trajectory and save the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from qdiff_fx.atomic import check_writable, entries
from qdiff_fx.backends import backend_names
from qdiff_fx.cli.choices import choice
from qdiff_fx.cli.config_file import read_config
from qdiff_fx.cli.estimates import estimate_figures, estimate_table, scope_line, taken_table
from qdiff_fx.cli.options import (
    ConfigFile,
    IgnoredBatchSize,
    Images,
    Json,
    OwnSteps,
    Prompt,
    Prompts,
    ScheduleFile,
    Seed,
    SourceName,
    load_source,
)
from qdiff_fx.cli.output import Output, speaking_for_all
from qdiff_fx.cli.parts import check_pipeline_target, parse_parts, pipeline_figures, report_pipeline
from qdiff_fx.cli.rules import parse_rule
from qdiff_fx.cli.schedule_file import read_schedule
from qdiff_fx.config import QDiffConfig, SplitPolicy, WeightRounding
from qdiff_fx.distributed import Workers, started_together
from qdiff_fx.errors import ArtifactError
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.quant.range_methods import range_methods
from qdiff_fx.reconstruction import PRESETS, Reconstruction, ReconstructionConfig
from qdiff_fx.report.comparison import megabytes
from qdiff_fx.report.layers import float_layers_table, layers_json
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.storage.artifact import MANIFEST, artifact_bytes
from qdiff_fx.weight_rounding import RoundingReport
from qdiff_fx.workflow.amounts import parse_bytes, parse_rows, parse_seconds
from qdiff_fx.workflow.enough import at_most
from qdiff_fx.workflow.estimate import Estimate
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.phases import Decided
from qdiff_fx.workflow.pipeline import DonePipeline, quantize_pipeline
from qdiff_fx.workflow.run import Done
from qdiff_fx.workflow.run import quantize as run_job

DEFAULTS = QDiffConfig()
NOT_YET = SampleRequest(1, 1)


def quantize(
    context: typer.Context,
    source: SourceName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    weight_bits: Annotated[int, typer.Option("--weight-bits", min=2, max=8)] = DEFAULTS.weight_bits,
    act_bits: Annotated[int, typer.Option("--act-bits", min=4, max=8)] = DEFAULTS.act_bits,
    softmax_bits: Annotated[int, typer.Option("--softmax-bits", help="4 to 8, or 16.")] = DEFAULTS.softmax_bits,
    split: Annotated[
        str, choice("--split", lambda: get_args(SplitPolicy), "Which shortcuts to split.")
    ] = DEFAULTS.split,
    act_range: Annotated[
        str, choice("--act-range", range_methods, "How a range comes from the statistics.")
    ] = DEFAULTS.act_range,
    weight_rounding: Annotated[
        str,
        choice("--rounding", lambda: get_args(WeightRounding), "Of weights; second_order takes longer, and is auto."),
    ] = DEFAULTS.weight_rounding,
    per_timestep: Annotated[
        bool,
        typer.Option(
            "--per-timestep/--per-tensor", help="A table of activation scales over the timesteps, or one scale."
        ),
    ] = DEFAULTS.act_granularity == "timestep",
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="PATTERN=WHAT", help="An exception, e.g. 'conv_in=float' or '*.to_q=w8a8'."),
    ] = None,
    backend: Annotated[
        str, choice("--backend", backend_names, "What it is to run on: x86 and qnnpack need ranges that others do not.")
    ] = "native",
    config_file: ConfigFile = None,
    steps: OwnSteps = None,
    schedule: ScheduleFile = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Trajectories to calibrate on [default: 8; half as many of a large network, more of few steps].",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Calibrate on every n-th step.")] = 1,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="N|all",
            help="Recorded rows to calibrate and round on, evenly chosen; by default as its size allows.",
        ),
    ] = None,
    batch_size: IgnoredBatchSize = 8,
    seed: Seed = 0,
    prompts: Prompts = None,
    prompt: Prompt = None,
    image: Images = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="DIR", help="Keep the trajectories here, and resume.")
    ] = None,
    reconstruct_as: Annotated[
        str | None,
        choice("--reconstruct", lambda: PRESETS, "Learn rounding and step sizes."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="DIR", help="Keep everything here as it is finished, and go on from it."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="TIME", help="30min, 2h: choose trajectories (--samples at most) and rows to fit."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="8GB: refuse what would hold more memory.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a step, say what everything will take, and stop there.")
    ] = False,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            metavar="LIST|all",
            help="unet,controlnet,vae,text,encoder: save the pipeline, these parts of it quantized; vae=w4a8 says how.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Quantize a network, or the parts of a pipeline, and save it as one self-contained folder."""
    given = {
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "softmax_bits": softmax_bits,
        "split": split,
        "weight_rounding": weight_rounding,
        "act_range": act_range,
        "per_timestep": per_timestep,
        "rule": rule,
    }
    # What can be wrong with the command line is found before the hours of work, not after.
    config = _configuration(context, config_file, given)
    learning = None if reconstruct_as is None else ReconstructionConfig.preset(reconstruct_as)
    seconds = None if budget is None else parse_seconds(budget, "--budget")
    placed = None if schedule is None else read_schedule(schedule)
    network, others = (True, ()) if parts is None else parse_parts(parts)
    # Checked before anything is loaded; what is drawn follows from the source.
    job = Job(config, NOT_YET, every, parse_rows(rows), backend, learning, seconds, samples is None, others, network)

    def settled(origin: Source) -> Job:
        return replace(job, request=at_most(origin, samples, steps, placed, seed, budgeted=seconds is not None))

    cap = None if memory is None else parse_bytes(memory, "--memory")
    if parts is None:
        check_target(out)
    else:
        check_pipeline_target(out)
    with started_together() as workers, speaking_for_all(workers):
        output = Output(json, silent=not workers.leads)
        # A dry run leaves nothing behind.
        folders = {} if dry_run else {"resume_dir": resume, "samples_dir": calibration}
        whole = parts is not None
        _run(
            (source, prompt, prompts, image), settled, out, output, workers, dry_run, whole, memory_bytes=cap, **folders
        )


def _run(
    named: tuple[str, list[str] | None, Path | None, list[Path] | None],
    settled: Callable[[Source], Job],
    out: Path,
    output: Output,
    workers: Workers,
    dry_run: bool,
    whole: bool,
    **more: Any,
) -> None:
    announced: list[tuple[Estimate, Job]] = []

    def announce(estimate: Estimate, final: Job) -> bool:
        announced.append((estimate, final))
        output.show(scope_line(estimate, final))
        output.show(estimate_table(estimate))
        return not dry_run

    with output.progress() as progress:
        with workers.together(), progress.phase("loading", None, "source"):
            origin = load_source(*named)
            job = settled(origin)
            origin.scheduler_for(job.request)  # another scheduler's schedule is refused before the hours of work
        if origin.takes_prompts and not any(named[1:3]):
            output.note("no --prompts: calibrating on captions that come with the package")
        run: Callable[..., Done | DonePipeline | None] = quantize_pipeline if whole else run_job
        done = run(origin, job, out, announce=announce, workers=workers, progress=progress, **more)
    if not workers.leads:
        return
    ((estimate, job),) = announced
    if done is None:
        output.figures({"source": origin.identifier, "estimate": estimate_figures(estimate, job)})
        return
    decided = done.decided or Decided(None, None)
    _report(decided, output)
    if isinstance(done, Done):
        output.show(float_layers_table(done.quantized.explain().rows, "quantized"))
        output.show(f"wrote {out}: {megabytes(artifact_bytes(out))}")
        figures = _figures(done.quantized, out)
    else:
        report_pipeline(done, out, output)
        figures = pipeline_figures(done, out, origin.identifier)
    output.show(taken_table(estimate, progress.taken))
    figures["estimate"] = estimate_figures(estimate, job, progress.taken)
    if decided.rounding is not None:
        figures["rounding"] = {"to_nearest": decided.rounding.refused, "short": decided.rounding.short}
    if decided.reconstruction is not None:
        figures["reconstruction"] = [unit.to_json() for unit in decided.reconstruction.units]
    output.figures(figures)


def _report(decided: Decided, output: Output) -> None:
    if decided.rounding is not None:
        _report_rounding(decided.rounding, output)
    if decided.reconstruction is not None:
        output.show(reconstruction_line(decided.reconstruction))


def _report_rounding(found: RoundingReport, output: Output) -> None:
    for path, reason in found.refused.items():
        output.note(f"{path} is rounded to nearest: {reason}")
    if found.short:
        path = min(found.short, key=found.short.__getitem__)
        output.note(
            f"{len(found.short)} of {len(found.rounded)} layers were rounded on fewer positions than they have columns "
            f"(least: {path}, {found.short[path]} positions); more rows or --samples say more about them"
        )


def reconstruction_line(result: Reconstruction) -> str:
    """What reconstruction did, and which blocks it left as they were."""
    units, kept = len(result.units), len(result.fallbacks)
    line = f"reconstructed {units - kept} of {units} blocks on {result.samples} samples"
    return "\n".join([line, *(f"{unit.path}: {unit.fell_back}; it keeps what it had" for unit in result.fallbacks)])


def _configuration(context: typer.Context, file: Path | None, given: dict[str, Any]) -> QDiffConfig:
    """That of the file, changed by the options that were given; without a file, that of the options."""
    config = read_config(file) if file else DEFAULTS
    names = [name for name in given if _was_given(context, name)]
    changes = {name: given[name] for name in names if name not in ("per_timestep", "rule")}
    if "per_timestep" in names:
        changes["act_granularity"] = "timestep" if given["per_timestep"] else "tensor"
    rules = tuple(parse_rule(text) for text in given["rule"] or ())
    return replace(config, **changes, rules=(*config.rules, *rules))


def _was_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    # By name: typer may bring a click of its own.
    return source is not None and source.name == "COMMANDLINE"


def check_target(out: Path) -> None:
    """Raises ArtifactError when the folder cannot be written, or holds something that is not a saved network."""
    check_writable(out)
    empty = out.is_dir() and not entries(out)
    if out.exists() and not empty and not (out / MANIFEST).is_file():
        raise ArtifactError("it exists and is not a saved network", where=str(out), fix="Choose another --out")


def _figures(quantized: QuantizedUNet, out: Path) -> dict[str, Any]:
    return {
        "folder": str(out),
        "bytes": artifact_bytes(out),
        "source": quantized.source,
        "config": quantized.qconfig.to_json(),
        "layers": layers_json(quantized.explain().rows),
    }
