"""A diffusers pipeline: a local folder, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from qdiff_fx.errors import QDiffError
from qdiff_fx.sources.base import Source, SourceError
from qdiff_fx.sources.drawing import DrawingSource
from qdiff_fx.storage.pipeline_index import LIBRARIES, check_is_data, read_index

HALF = "fp16"
"""What diffusers calls the files of float16 weights: model.fp16.safetensors."""
OF_WEIGHTS = (".safetensors", ".bin")


def load_pipeline(identifier: str, prompts: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Source:
    """The source of a pipeline folder or hub repository; prompts and what else is given are for the images in turn.

    Weights are read into float32; from files of float16 where there are no others.

    Raises:
        SourceError: it cannot be loaded, or has no UNet.
    """
    # Slow to import, and only needed here.
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    path = Path(identifier)
    try:
        # Said, as transformers would read text encoders in the type that their configuration names.
        options: dict[str, Any] = _in_float32()
        if half_alone(_files(identifier)):
            options["variant"] = HALF
        pipe = DiffusionPipeline.from_pretrained(identifier, **options)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        fix = "" if find_spec("transformers") else "Most pipelines need transformers: pip install 'qdiff_fx[pipelines]'"
        raise SourceError(f"the pipeline cannot be loaded ({detail})", where=identifier, fix=fix) from error
    return Source(str(path.resolve()) if path.exists() else identifier, pipe, prompts, given)


def load_saved_pipeline(
    folder: Path, prompts: Sequence[str] = (), backend: str = "native", given: Mapping[str, Any] | None = None
) -> DrawingSource:
    """The source of a pipeline whose networks are quantized, for drawing.

    The folder may be anybody's: it is data. Nothing in it is executed or unpickled, and of the libraries that it names
    only those are imported that pipelines are made of.

    Args:
        folder: as `pipe.save_pretrained` or `qdiff quantize --parts` wrote it.
        prompts: given to the images in turn.
        backend: what its quantized networks run on.
        given: other arguments that say what to draw, see `Source`.
    Raises:
        ArtifactError: it brings code of its own, or a quantized network in it is damaged.
        SourceError: it cannot be loaded, or has no UNet.
    """
    check_is_data(folder)
    from diffusers import DiffusionPipeline, pipelines

    for name, (library, _) in read_index(folder).items():
        if library is not None and library not in LIBRARIES and not hasattr(pipelines, library):
            raise SourceError(
                f"its {name} is of {library!r}, which is not imported on a folder's word",
                where=str(folder),
                fix="Load it yourself, if you trust it",
            )
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True, **_in_float32())
    except QDiffError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(f"the pipeline cannot be loaded ({detail})", where=str(folder)) from error
    source = DrawingSource(str(folder.resolve()), pipe, prompts, given)
    source.run_on(backend)
    return source


def _in_float32() -> dict[str, Any]:
    """The option, by the name that this version of diffusers has for it."""
    from diffusers.pipelines import pipeline_utils

    return {"dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype": torch.float32}


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
