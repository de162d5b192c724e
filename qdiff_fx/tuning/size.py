"""How large the saved folder will be: what serialization writes, not what bits times weights would be."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from qdiff_fx.networks import PreparedUNet
from qdiff_fx.storage.artifact import Artifact, artifact_bytes, save_artifact
from qdiff_fx.tuning.choice import AS_CONFIGURED, Choice
from qdiff_fx.tuning.units import Unit, convert_as, with_choices

PROBE = Choice(6)
"""Packed, and nearly as large as unpacked: what JSON says about the tensors is then longest."""


def fixed_bytes(prepared: PreparedUNet, units: list[Unit], source: str = "") -> int:
    """Bytes of the saved folder besides the units' weights: biases, scales, norms, tables, the graph, the manifest.

    Measured by saving the network once, with a rule for every unit. It is an upper bound: a unit of 8 bits or in
    float has up to a few hundred bytes of JSON less.
    """
    probe = {unit.path: PROBE if unit.counts else AS_CONFIGURED for unit in units}
    # The range search changes scales, not sizes.
    config = replace(with_choices(prepared.qconfig, units, probe), weight_range="max")
    graph = convert_as(prepared, config)
    with tempfile.TemporaryDirectory(prefix="qdiff-size-") as folder:
        target = save_artifact(Artifact(graph, prepared.signature, config, source), Path(folder) / "probe")
        total = artifact_bytes(target)
    return total - sum(unit.bytes_at(probe[unit.path]) for unit in units)
