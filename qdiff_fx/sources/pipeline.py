"""A diffusers pipeline: a local folder, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from qdiff_fx.sources.base import Source, SourceError

HALF = "fp16"
"""What diffusers calls the files of float16 weights: model.fp16.safetensors."""
OF_WEIGHTS = (".safetensors", ".bin")


def load_pipeline(identifier: str, prompts: Sequence[str] = ()) -> Source:
    """The source of a pipeline folder or hub repository; prompts are given to the images in turn.

    Weights that are there in float16 alone are read from these, into float32.

    Raises:
        SourceError: it cannot be loaded, or has no UNet.
    """
    # Slow to import, and only needed here.
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    path = Path(identifier)
    try:
        options: dict[str, Any] = {"variant": HALF} if half_alone(_files(identifier)) else {}
        pipe = DiffusionPipeline.from_pretrained(identifier, **options)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        fix = "" if find_spec("transformers") else "Most pipelines need transformers: pip install 'qdiff_fx[pipelines]'"
        raise SourceError(f"the pipeline cannot be loaded ({detail})", where=identifier, fix=fix) from error
    return Source(str(path.resolve()) if path.exists() else identifier, pipe, prompts)


def half_alone(files: Iterable[str]) -> bool:
    """Whether a component has weights in float16 and no others.

    Args:
        files: of the pipeline, relative: "unet/diffusion_pytorch_model.fp16.safetensors".
    """
    folders: dict[bool, set[str]] = {True: set(), False: set()}
    for file in map(PurePosixPath, files):
        if file.suffix in OF_WEIGHTS:
            folders[f".{HALF}" in file.name].add(str(file.parent))
    return bool(folders[True] - folders[False])


def _files(identifier: str) -> list[str]:
    """Of the folder, or of the repository as the hub lists it; where that is out of reach, of what was fetched."""
    folder = Path(identifier)
    if not folder.is_dir():
        from huggingface_hub import HfApi, hf_hub_download

        try:
            return HfApi().list_repo_files(identifier)
        except Exception:
            # Whatever the cause, from_pretrained meets it too, and says it where nothing was fetched.
            try:
                folder = Path(hf_hub_download(identifier, "model_index.json", local_files_only=True)).parent
            except Exception:
                return []
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
