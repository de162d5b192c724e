"""Open a saved network together with the float network it was made from."""

from __future__ import annotations

from pathlib import Path

from qdiff_fx.cli.options import load_source
from qdiff_fx.cli.output import Output
from qdiff_fx.errors import ArtifactError, printable
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.sources import DIGITS, SampleRequest, Source


def request_of(
    origin: Source,
    quantized: QuantizedUNet | None,
    count: int,
    steps: int | None,
    seed: int,
    guidance_until: float = 1.0,
) -> SampleRequest:
    """So many images, by as many uniform steps; where none are given, by those that the folder keeps, or the usual."""
    schedule = quantized.schedule if steps is None and quantized is not None else None
    return SampleRequest(
        count, origin.steps_taken(steps, schedule), seed, schedule=schedule, guidance_until=guidance_until
    )


def source_of(
    quantized: QuantizedUNet,
    folder: Path,
    override: str,
    output: Output,
    prompt: list[str] | None = None,
    prompts: Path | None = None,
    images: list[Path] | None = None,
) -> Source:
    """The source given, or the bundled one where the folder names it.

    A folder is data, often somebody else's: no file that it names is executed, and nothing is downloaded for it.

    Raises:
        ArtifactError: there is neither.
    """
    identifier = override or quantized.source
    if not override and identifier != DIGITS:
        named = f"it names '{printable(identifier)}', which is not loaded on a folder's word alone"
        raise ArtifactError(
            named if identifier else "it does not record what it was made from",
            where=str(folder),
            fix="Pass --source SOURCE, one that you trust",
        )
    output.note(f"loading {identifier}")
    source = load_source(identifier, prompt, prompts, images)
    source.progress = output.interactive
    return source
