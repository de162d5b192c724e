"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SavedFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by `qdiff quantize`.")]
SourceName = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="`digits`, a diffusers pipeline folder or hub id, or a Python file (which is executed) with load_unet() "
        "and make_scheduler(steps).",
    ),
]
SourceOverride = Annotated[
    str,
    typer.Option(
        "--source", metavar="SOURCE", help="The float network, as for `qdiff quantize`. Not needed for `digits`."
    ),
]
BackendName = Annotated[str, typer.Option("--backend", help="What the quantized network runs on.")]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH", help="Write the figures as JSON; - is stdout.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="Text file with one prompt per line, for pipelines that take prompts.", exists=True),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Start from this configuration, e.g. one that `qdiff tune` wrote."),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the starting noise.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per call of the network.")]

IgnoredBatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", min=1, help="Changes nothing any more: the network decides how many are drawn together."
    ),
]


def read_prompts(path: Path | None) -> list[str]:
    """The non-empty lines of a file; no prompts without one."""
    if path is None:
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
