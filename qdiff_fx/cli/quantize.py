"""``qdiff quantize SOURCE --out DIR``: calibrate on the network's own trajectory and save the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qdiff_fx.atomic import entries
from qdiff_fx.cli.config_file import read_config
from qdiff_fx.cli.options import BatchSize, ConfigFile, Json, Prompts, Seed, SourceName, Steps, read_prompts
from qdiff_fx.cli.output import Output
from qdiff_fx.cli.rules import parse_rule
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ArtifactError
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.reconstruction import Reconstruction, ReconstructionConfig
from qdiff_fx.report.comparison import megabytes
from qdiff_fx.report.layers import float_layers_table, layers_json
from qdiff_fx.sources import SampleRequest, resolve
from qdiff_fx.storage.artifact import MANIFEST, artifact_bytes
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.run import build_kernels, decide, draw, prepare, save

DEFAULTS = QDiffConfig()


def quantize(
    context: typer.Context,
    source: SourceName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    weight_bits: Annotated[int, typer.Option("--weight-bits", help="2 to 8.")] = DEFAULTS.weight_bits,
    act_bits: Annotated[int, typer.Option("--act-bits", help="4 to 8.")] = DEFAULTS.act_bits,
    softmax_bits: Annotated[int, typer.Option("--softmax-bits", help="4 to 8, or 16.")] = DEFAULTS.softmax_bits,
    split: Annotated[
        str, typer.Option("--split", help="Which shortcuts to split: shortcut, all or off.")
    ] = DEFAULTS.split,
    act_range: Annotated[
        str, typer.Option("--act-range", help="minmax, moving_average, percentile or mse.")
    ] = DEFAULTS.act_range,
    weight_rounding: Annotated[
        str,
        typer.Option(
            "--rounding", help="Of weights: nearest, or second_order (takes a few minutes); auto is second_order."
        ),
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
        str, typer.Option("--backend", help="What it is to run on: x86 and qnnpack need ranges that others do not.")
    ] = "native",
    config_file: ConfigFile = None,
    steps: Steps = 25,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Trajectories to calibrate on.")] = 8,
    every: Annotated[int, typer.Option("--every", min=1, help="Calibrate on every n-th step.")] = 1,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=1, help="Recorded rows to calibrate and round on, evenly chosen [default: all]."),
    ] = None,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    prompts: Prompts = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="DIR", help="Keep the trajectories here, and resume.")
    ] = None,
    reconstruct_as: Annotated[
        str | None,
        typer.Option("--reconstruct", metavar="PRESET", help="Learn rounding and step sizes: fast, standard or paper."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="DIR", help="Keep everything here as it is finished, and go on from it."),
    ] = None,
    json: Json = None,
) -> None:
    """Quantize a network and save it as one self-contained folder."""
    output = Output(json)
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
    schedule = None if reconstruct_as is None else ReconstructionConfig.preset(reconstruct_as)
    job = Job(config, SampleRequest(samples, steps, seed), every, rows, backend, schedule)
    check_target(out)
    with output.progress() as progress:
        with progress.phase("loading", None, "source"):
            origin = resolve(source, read_prompts(prompts))
        folder = WorkFolder(resume, origin, job, samples=calibration)
        prepared = prepare(origin, job, progress)
        build_kernels(progress)
        data = draw(origin, job, folder, progress)
        decided = decide(prepared, data, job, folder, progress)
        quantized = save(prepared, origin, out, progress)
    for path, reason in decided.rounded_to_nearest.items():
        output.note(f"{path} is rounded to nearest: {reason}")
    if decided.reconstruction is not None:
        output.show(reconstruction_line(decided.reconstruction))
    output.show(float_layers_table(quantized.explain().rows, "quantized"))
    output.show(f"wrote {out}: {megabytes(artifact_bytes(out))}")
    figures = _figures(quantized, out)
    figures["phases"] = _phases(progress)
    if decided.reconstruction is not None:
        figures["reconstruction"] = [unit.to_json() for unit in decided.reconstruction.units]
    output.figures(figures)


def _phases(progress: Overall) -> dict[str, Any]:
    return {name: {"seconds": taken.seconds, "peak_bytes": taken.peak_bytes} for name, taken in progress.taken.items()}


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
    """Raises ArtifactError when the folder to write holds something that is not a saved network."""
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
