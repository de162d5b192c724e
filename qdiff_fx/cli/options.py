"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from qdiff_fx.backends import backend_names
from qdiff_fx.cli.choices import choice
from qdiff_fx.sources import Source, SourceError, resolve
from qdiff_fx.sources.subjects import PICTURES

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
BackendName = Annotated[str, choice("--backend", backend_names, "What the quantized network runs on.")]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH", help="Write the figures as JSON; - is stdout.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="Text file with one prompt per line, for pipelines that take prompts.", exists=True),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="A prompt, before those of --prompts; repeatable."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture, for pipelines that draw by pictures, as with a ControlNet; repeatable.",
        exists=True,
        dir_okay=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Start from this configuration, e.g. one that `qdiff tune` wrote."),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
OwnSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Denoising steps [default: those of its schedule, or 25; of few-step pipelines their own].",
        show_default=False,
    ),
]
ScheduleFile = Annotated[
    Path | None,
    typer.Option("--schedule", metavar="FILE", help="Calibrate along the steps that `qdiff schedule` wrote."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the starting noise.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per call of the network.")]

IgnoredBatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size", min=1, help="Changes nothing any more: the network decides how many are drawn together."
    ),
]


def load_source(
    identifier: str, prompt: list[str] | None, prompts: Path | None, images: list[Path] | None = None
) -> Source:
    """The source, with the prompts and pictures that were given: they are given to the images in turn.

    Raises:
        SourceError: it cannot be loaded, or takes no prompts or pictures.
        ConfigError: a pipeline takes no pictures, or they are as few as prompts are not.
    """
    given = [*(prompt or ()), *read_prompts(prompts)]
    source = resolve(identifier, given, read_images(images))
    if images and not source.given:
        raise SourceError("it takes no pictures", where=identifier, fix="Leave out --image")
    if given and not source.takes_prompts:
        raise SourceError(
            f"{type(source.pipe).__name__} takes no prompts", where=identifier, fix="Leave out --prompt and --prompts"
        )
    return source


def read_images(paths: list[Path] | None) -> dict[str, Any]:
    """As the argument that pipelines take them by; nothing without any.

    Raises:
        SourceError: one is no picture.
    """
    found = []
    for path in paths or ():
        try:
            with Image.open(path) as picture:
                found.append(picture.convert("RGB"))
        except OSError as error:
            raise SourceError("it is no picture that can be read", where=str(path), fix="Give a PNG or JPEG") from error
    return {PICTURES[0]: found} if found else {}


def read_prompts(path: Path | None) -> list[str]:
    """The non-empty lines of a file; no prompts without one."""
    if path is None:
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
