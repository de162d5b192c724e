"""Open a saved network together with the float network it was made from."""

from __future__ import annotations

from pathlib import Path

from qdiff_fx.cli.options import read_prompts
from qdiff_fx.cli.output import Output
from qdiff_fx.errors import ArtifactError
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.sources import Source, resolve


def source_of(
    quantized: QuantizedUNet, folder: Path, override: str, output: Output, prompts: Path | None = None
) -> Source:
    """The source the folder records, or the one given instead.

    Raises:
        ArtifactError: there is neither.
    """
    identifier = override or quantized.source
    if not identifier:
        raise ArtifactError("it does not record what it was made from", where=str(folder), fix="Pass --source SOURCE")
    output.note(f"loading {identifier}")
    source = resolve(identifier, read_prompts(prompts))
    source.progress = output.interactive
    return source
