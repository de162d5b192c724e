"""``qdiff tune SOURCE --target-size 30MB --out FILE``: bits for each layer, saved as a configuration."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from qdiff_fx.cli.config_file import read_config, write_config
from qdiff_fx.cli.options import (
    BackendName,
    ConfigFile,
    IgnoredBatchSize,
    Json,
    Prompt,
    Prompts,
    Seed,
    SourceName,
    Steps,
    load_source,
)
from qdiff_fx.cli.output import Output, check_writable_file, speaking_for_all
from qdiff_fx.cli.quantize import DEFAULTS
from qdiff_fx.distributed import started_together
from qdiff_fx.errors import ConfigError
from qdiff_fx.report.comparison import megabytes
from qdiff_fx.sources import SampleRequest
from qdiff_fx.tuning import DEFAULT_BITS, Budget, Tuned, share_sensitivity, tune
from qdiff_fx.workflow.amounts import parse_bytes, parse_seconds, parse_share
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.phases import build_kernels, draw, prepare
from qdiff_fx.workflow.shared import calibrate_together

MOST_NOISE = 10


def tune_command(
    source: SourceName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The configuration to write, JSON.")],
    target_size: Annotated[str | None, typer.Option("--target-size", help="Of the saved folder, e.g. 30MB.")] = None,
    target_latency: Annotated[
        str | None,
        typer.Option("--target-latency", help="Of one step on this machine: 60ms, or 100% of what it takes untuned."),
    ] = None,
    bits: Annotated[str, typer.Option("--bits", help="Weight bits to choose from.")] = ",".join(map(str, DEFAULT_BITS)),
    allow_float: Annotated[
        bool, typer.Option("--allow-float/--no-float", help="Whether layers may stay in float.")
    ] = False,
    allow_wide: Annotated[
        bool | None,
        typer.Option("--allow-wide/--no-wide", help="Whether inputs may have 16 bits; by default with a latency."),
    ] = None,
    config: ConfigFile = None,
    backend: BackendName = "native",
    steps: Steps = 25,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Trajectories to calibrate on.")] = 8,
    batch_size: IgnoredBatchSize = 8,
    seed: Seed = 0,
    probe_steps: Annotated[int, typer.Option("--probe-steps", min=1, help="Timesteps that are probed.")] = 5,
    probe_images: Annotated[int, typer.Option("--probe-images", min=1, help="Images at each of them.")] = 1,
    latency_batch: Annotated[int, typer.Option("--latency-batch", min=1, help="Images of the timed step.")] = 1,
    sensitivity: Annotated[
        Path | None, typer.Option("--sensitivity", metavar="FILE", help="Keep the measurement here, and resume.")
    ] = None,
    prompts: Prompts = None,
    prompt: Prompt = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="DIR", help="Keep the calibration data here, and resume.")
    ] = None,
    json: Json = None,
) -> None:
    """Measure how sensitive each layer is, and give each its bits under a target of size or latency."""
    check_writable_file(out)
    budget = _budget(target_size, target_latency)
    chosen_bits = _parse_bits(bits)
    base = read_config(config) if config else DEFAULTS
    job = Job(base, SampleRequest(samples, steps, seed), backend=backend)
    probing: dict[str, Any] = {"bits": chosen_bits, "probe_steps": probe_steps, "probe_images": probe_images}
    with started_together() as workers, speaking_for_all(workers), tempfile.TemporaryDirectory() as scratch:
        output = Output(json, silent=not workers.leads)
        with output.progress() as progress, workers.together():
            with progress.phase("loading", None, "source"):
                origin = load_source(source, prompt, prompts)
            folder = WorkFolder(None, origin, job, samples=calibration)
            prepared = prepare(origin, job, progress)
            build_kernels(progress)
            data = draw(origin, job, folder, progress, workers)
            calibrate_together(prepared, data, workers, resume_dir=None, progress=progress)
        output.note("measuring how sensitive each layer is")
        if workers.count > 1:
            # What comes then is done by one, which finds it measured.
            sensitivity = sensitivity or Path(scratch) / "sensitivity.json"
            share_sensitivity(
                prepared, data, **probing, sensitivity=sensitivity, progress=output.interactive, workers=workers
            )
        if not workers.leads:
            return
        tuned = tune(
            prepared,
            data,
            target_size=budget.bytes,
            target_latency=budget.seconds,
            target_latency_ratio=budget.ratio,
            **probing,
            allow_float=allow_float,
            allow_wide=allow_wide,
            backend=backend,
            latency_inputs=origin.example_inputs(latency_batch) if budget.times else None,
            sensitivity=sensitivity,
            source=origin.identifier,
            progress=output.interactive,
        )
        _report(tuned, out, output)


def _report(tuned: Tuned, out: Path, output: Output) -> None:
    write_config(tuned.config, out)
    output.show(_bits_table(tuned))
    output.show(_noise_table(tuned))
    output.show(f"wrote {out}: at most {megabytes(tuned.bytes)}, about {tuned.sqnr_db:.1f} dB predicted{_time(tuned)}")
    output.figures(_figures(tuned, out))


def _budget(size: str | None, latency: str | None) -> Budget:
    share = latency is not None and latency.rstrip().endswith("%")
    return Budget(
        bytes=None if size is None else parse_bytes(size, "--target-size"),
        seconds=None if latency is None or share else parse_seconds(latency, "--target-latency"),
        ratio=parse_share(latency, "--target-latency") if latency is not None and share else None,
    )


def _parse_bits(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no list of bits", where="--bits", fix="Write 4,8") from error


def _time(tuned: Tuned) -> str:
    if tuned.seconds is None or tuned.configured_seconds is None:
        return ""
    return f", {tuned.seconds * 1e3:.2f} ms a step where the untuned network takes {tuned.configured_seconds * 1e3:.2f}"


def _bits_table(tuned: Tuned) -> Table:
    table = Table(title="what was chosen")
    for column in ("bits", "layers", "size"):
        table.add_column(column, justify="right")
    for choice, count in sorted(Counter(tuned.choices.values()).items()):
        size = sum(tuned.menu[path][each].bytes for path, each in tuned.choices.items() if each == choice)
        table.add_row(str(choice), str(count), megabytes(size))
    return table


def _noise_table(tuned: Tuned) -> Table:
    """The layers that leave most noise, averaged over the probed timesteps relative to all noise there."""
    table = Table(title="the layers that add most of the noise left")
    for column in ("layer", "bits", "share of the noise"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for path, share in sorted(tuned.noise_shares().items(), key=lambda item: -item[1])[:MOST_NOISE]:
        table.add_row(Text(path), str(tuned.choices[path]), f"{share:.1%}")
    return table


def _figures(tuned: Tuned, out: Path) -> dict[str, Any]:
    return {
        "config": str(out),
        "bytes": tuned.bytes,
        "sqnr_db": tuned.sqnr_db,
        "seconds": tuned.seconds,
        "configured_seconds": tuned.configured_seconds,
        "layers": [
            {
                "path": path,
                "weight_bits": choice.weight_bits,
                "wide": choice.wide,
                "noise_share": tuned.noise_shares()[path],
                "bytes": tuned.menu[path][choice].bytes,
                "noise": {str(each): list(option.noise) for each, option in tuned.menu[path].items()},
                "seconds": {str(each): option.seconds for each, option in tuned.menu[path].items()},
            }
            for path, choice in tuned.choices.items()
        ],
    }
