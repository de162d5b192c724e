"""A saved network as a component of a pipeline's folder.

    unet/config.json     says what it is, to people and to the hub; nothing is read from it
    unet/network.qdiff/  the network, as `save_qdiff` writes it

One folder deeper than the weights of other components: of folders that have weights in them diffusers downloads files
of known names only, of others everything. And with a dot in its name, as diffusers splits all names at dots.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from qdiff_fx.atomic import entries, replacing_folder
from qdiff_fx.errors import ArtifactError
from qdiff_fx.storage.artifact import KIND, Artifact, save_artifact

DESCRIPTION, NETWORK = "config.json", "network.qdiff"
IN_NETWORK = (KIND.manifest, *KIND.files)
FILES = (*IN_NETWORK, *(f"{NETWORK}/{name}" for name in IN_NETWORK))
"""Of either layout, with and without the folder in between."""


def save_component(artifact: Artifact, folder: str | os.PathLike[str]) -> Path:
    """Write the folder, whole or not at all; one of the same kind is replaced.

    Raises:
        ArtifactError: the folder holds something else, the disk is full, or the network cannot be saved.
    """
    target = Path(folder)
    others = sorted({each.name for each in entries(target)} - {DESCRIPTION, NETWORK}) if target.is_dir() else []
    if others:
        raise ArtifactError(
            f"it holds {others[0]!r}, which a quantized network does not",
            where=str(target),
            fix="Save into another folder",
        )
    description = {"_class_name": "QuantizedUNet", "quantization_config": artifact.config.to_dict()}
    with replacing_folder(target) as staging:
        save_artifact(artifact, staging / NETWORK)
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return target


def network_in(folder: Path) -> Path:
    """Where the network is, in a component's folder or in one of `save_qdiff`."""
    inside = folder / NETWORK
    return inside if (inside / KIND.manifest).is_file() and not (folder / KIND.manifest).is_file() else folder
