"""``qdiff schedule SOURCE --steps 12 --out FILE``: which of the sampler's steps to take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdiff_fx.cli.options import Json, Prompt, Prompts, Seed, SourceName, load_source
from qdiff_fx.cli.output import Output, check_writable_file
from qdiff_fx.cli.schedule_file import write_schedule
from qdiff_fx.schedules import optimize_schedule
from qdiff_fx.schedules.optimize import SAMPLES
from qdiff_fx.sources import SampleRequest


def schedule(
    source: SourceName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The JSON file to write.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="How many steps to take.")] = 12,
    out_of: Annotated[int, typer.Option("--out-of", min=1, help="Of how many uniform ones.")] = 25,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Trajectories to choose by.")] = SAMPLES,
    seed: Seed = 0,
    prompts: Prompts = None,
    prompt: Prompt = None,
    json: Json = None,
) -> None:
    """Choose the steps that lead nearest to where all of them lead, with the float network."""
    output = Output(json)
    check_writable_file(out)
    request = SampleRequest(samples, out_of, seed)
    with output.progress() as progress:
        with progress.phase("loading", None, "source"):
            origin = load_source(source, prompt, prompts)
        found = optimize_schedule(
            origin.pipe,
            origin.subjects(request),
            steps,
            out_of=out_of,
            scheduler=origin.make_scheduler(out_of),
            num_samples=samples,
            seed=seed,
            progress=progress,
        )
    write_schedule(found, out)
    output.show(f"steps {', '.join(map(str, found.chosen))} of {out_of}")
    output.show(f"timesteps {', '.join(f'{each:g}' for each in found.timesteps)}")
    output.show(f"wrote {out}")
    output.figures({"source": origin.identifier, **found.to_json()})
