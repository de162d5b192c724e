"""An autoencoder with quantized networks inside, as a component of a pipeline's folder.

    vae/config.json                      which autoencoder it is, its configuration, and a digest of its weights
    vae/decoder.qdiff/                   a quantized network, as `save_qdiff` writes it; likewise encoder.qdiff/
    vae/float.qdiff/weights.safetensors  weights of all that is not quantized

One folder deeper than the weights of other components, see `storage/component.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qdiff_fx.atomic import current, entries, replacing_folder
from qdiff_fx.errors import ArtifactError
from qdiff_fx.storage.artifact import KIND, Artifact, save_artifact
from qdiff_fx.storage.fields import Fields
from qdiff_fx.storage.sealed import check_file, file_digest, read_tensors, reading
from qdiff_fx.storage.strict_json import read_json

DESCRIPTION, FLOAT, WEIGHTS = "config.json", "float.qdiff", "weights.safetensors"
FLOAT_WEIGHTS, DIGEST = f"{FLOAT}/{WEIGHTS}", "float_sha256"
INSIDE = ("decoder", "encoder")
"""Networks of an autoencoder that are quantized."""
FILES = (
    DESCRIPTION,
    FLOAT_WEIGHTS,
    *(f"{inside}.qdiff/{name}" for inside in INSIDE for name in (KIND.manifest, *KIND.files)),
)
LARGEST_COUNT = 1 << 16
"""Of channels, blocks and pixels in a configuration: more of any would only be meant to do harm."""
LONGEST_LIST = 64


@dataclass(frozen=True)
class SavedAutoencoder:
    """What such a folder holds.

    Attributes:
        kind: class of diffusers.
        config: arguments it is built with.
        networks: folders of the quantized networks, by what they are inside the autoencoder.
        weights: of all that is not quantized.
    """

    kind: str
    config: Mapping[str, Any]
    networks: Mapping[str, Path]
    weights: Mapping[str, Tensor]


def save_autoencoder(
    kind: str,
    config: Mapping[str, Any],
    networks: Mapping[str, Artifact],
    weights: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
) -> Path:
    """Write the folder, whole or not at all; one of the same kind is replaced.

    Raises:
        ArtifactError: the folder holds something else, the disk is full, or a network cannot be saved.
    """
    target = Path(folder)
    own = {DESCRIPTION, FLOAT, *(f"{inside}.qdiff" for inside in INSIDE)}
    others = sorted({each.name for each in entries(target)} - own) if target.is_dir() else []
    if others:
        raise ArtifactError(
            f"it holds {others[0]!r}, which an autoencoder of quantized networks does not",
            where=str(target),
            fix="Save into another folder",
        )
    described = {inside: artifact.config.to_dict() for inside, artifact in networks.items()}
    description = {"_class_name": kind, **config, "quantized": described}
    expected = sum(each.nbytes for each in weights.values())
    with replacing_folder(target, expected_bytes=expected) as staging:
        for inside, artifact in networks.items():
            save_artifact(artifact, staging / f"{inside}.qdiff")
        (staging / FLOAT).mkdir()
        copies = {name: each.detach().cpu().clone().contiguous() for name, each in weights.items()}
        save_file(copies, staging / FLOAT_WEIGHTS, metadata={"format": "pt"})
        description[DIGEST] = file_digest(staging / FLOAT_WEIGHTS)
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return target


def read_autoencoder(folder: Path, kinds: Mapping[str, Collection[str]]) -> SavedAutoencoder:
    """What the folder holds, as data: nothing in it is executed, and of its configuration only plain values are taken.

    Args:
        folder: of the component.
        kinds: the classes it may be of, and the arguments that each is built with.
    Raises:
        ArtifactError: it is missing, damaged, or something else.
    """
    path = current(folder)
    if not (path / DESCRIPTION).is_file():
        raise ArtifactError(f"there is no {DESCRIPTION} in it", where=str(folder), fix="Save the pipeline again")
    with reading(path):
        fields = Fields(read_json(path / DESCRIPTION), f"{path.name}/{DESCRIPTION}")
        kind = fields.choice("_class_name", kinds)
        config = {name: _plain(fields.data[name], name, fields.where) for name in kinds[kind] if name in fields}
        networks = {inside: path / f"{inside}.qdiff" for inside in INSIDE if inside in fields.object("quantized")}
        if not networks:
            raise ArtifactError("it names no quantized network", where=fields.where, fix="Save the pipeline again")
        if DIGEST in fields:  # the first folders of this kind have none
            check_file(path, FLOAT_WEIGHTS, fields.text(DIGEST))
        return SavedAutoencoder(kind, config, networks, dict(read_tensors(path / FLOAT_WEIGHTS)))


def _plain(value: Any, name: str, where: str) -> Any:
    """A number, a text, a truth, None, or a short list of these."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > LONGEST_LIST:
            raise ArtifactError(f"{name} has {len(value)} items", where=where)
        return tuple(_plain(each, name, where) for each in value)
    if isinstance(value, Mapping):
        raise ArtifactError(f"{name} is an object, which no autoencoder is built with", where=where)
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= LARGEST_COUNT:
        raise ArtifactError(f"{name} is {value}, which no autoencoder has", where=where)
    return value
