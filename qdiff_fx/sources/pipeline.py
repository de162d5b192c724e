"""A diffusers pipeline: a local folder, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdiff_fx.sources.base import Source, SourceError


def load_pipeline(identifier: str, prompts: Sequence[str] = ()) -> Source:
    """The source of a pipeline folder or hub repository; prompts are given to the images in turn.

    Raises:
        SourceError: it cannot be loaded, or has no UNet.
    """
    # Slow to import, and only needed here.
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(identifier)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(f"the pipeline cannot be loaded ({detail})", where=identifier) from error
    path = Path(identifier)
    return Source(str(path.resolve()) if path.exists() else identifier, pipe, prompts)
