"""``qdiff sample DIR``: a picture of what a saved network, or a saved pipeline, draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from qdiff_fx.api import load_qdiff
from qdiff_fx.cli.options import (
    BackendName,
    Images,
    OwnSteps,
    Prompt,
    Prompts,
    SavedFolder,
    Seed,
    SourceOverride,
    load_source,
    read_images,
    read_prompts,
)
from qdiff_fx.cli.output import Output, check_writable_file
from qdiff_fx.cli.saved import request_of, source_of
from qdiff_fx.errors import ConfigError
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.report.sheet import save_sheet
from qdiff_fx.sources.parts import all_quantized
from qdiff_fx.sources.pipeline import load_saved_pipeline
from qdiff_fx.storage.pipeline_index import INDEX

COUNT = 10


def sample(
    folder: SavedFolder,
    out: Annotated[Path, typer.Option("--out", help="The PNG file to write.")],
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            min=1,
            help="How many images, in one batch [default: 10; of a pipeline one for each prompt or picture].",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Add a row drawn by the float network.")] = False,
    source: SourceOverride = "",
    backend: BackendName = "native",
    steps: OwnSteps = None,
    seed: Seed = 0,
    prompts: Prompts = None,
    prompt: Prompt = None,
    image: Images = None,
    guidance_until: Annotated[
        float, typer.Option("--guidance-until", metavar="SHARE", help="Guide so much of the steps, then no more.")
    ] = 1.0,
) -> None:
    """Draw images with a saved network, or with a saved pipeline, into one PNG sheet."""
    output = Output()
    check_writable_file(out)
    asked = _Asked(folder, count, compare, source, backend, steps, seed, prompts, prompt, image, guidance_until)
    rows = _of_pipeline(asked, output) if (folder / INDEX).is_file() else _of_network(asked, output)
    output.show(f"wrote {save_sheet(rows, out)}")


@dataclass(frozen=True)
class _Asked:
    """What the options say."""

    folder: Path
    count: int | None
    compare: bool
    source: str
    backend: str
    steps: int | None
    seed: int
    prompts: Path | None
    prompt: list[str] | None
    images: list[Path] | None
    guidance_until: float


def _of_pipeline(asked: _Asked, output: Output) -> dict[str, torch.Tensor]:
    """One image for each prompt or picture, where nobody says how many."""
    if asked.compare and not asked.source:
        raise ConfigError("a folder of quantized networks has no float one", where="--compare", fix="Give --source")
    output.note(f"loading {asked.folder}")
    given = [*(asked.prompt or ()), *read_prompts(asked.prompts)]
    origin = load_saved_pipeline(asked.folder, given, asked.backend, read_images(asked.images))
    origin.progress = output.interactive
    if given and not origin.takes_prompts:
        raise ConfigError(f"{type(origin.pipe).__name__} takes no prompts", where="--prompt", fix="Leave it out")
    network = origin.unet if isinstance(origin.unet, QuantizedUNet) else None
    request = request_of(
        origin,
        network,
        asked.count or max(len(given), len(asked.images or ()), 1),
        asked.steps,
        asked.seed,
        asked.guidance_until,
    )
    rows = {}
    if asked.compare:
        output.note(f"drawing with {asked.source}")
        floats = load_source(asked.source, asked.prompt, asked.prompts, asked.images)
        rows["FP"] = floats.sample(floats.unet, request)
    quantized = ", ".join(all_quantized(origin.pipe)) or "nothing"
    output.note(f"drawing with the {asked.backend} backend; {quantized} quantized")
    rows[origin.label] = origin.sample(origin.unet, request)
    return rows


def _of_network(asked: _Asked, output: Output) -> dict[str, torch.Tensor]:
    quantized = load_qdiff(asked.folder, backend=asked.backend)
    origin = source_of(quantized, asked.folder, asked.source, output, asked.prompt, asked.prompts, asked.images)
    request = request_of(origin, quantized, asked.count or COUNT, asked.steps, asked.seed, asked.guidance_until)
    if request.schedule is not None:
        output.note(f"taking {request.steps} placed steps in place of {request.schedule.out_of}")
    rows = {}
    if asked.compare:
        output.note("denoising with the float network")
        rows["FP"] = origin.sample(origin.unet, request)
    output.note(f"denoising with the {asked.backend} backend")
    config = quantized.qconfig
    rows[f"W{config.weight_bits}A{config.act_bits}"] = origin.sample(quantized, request)
    return rows
