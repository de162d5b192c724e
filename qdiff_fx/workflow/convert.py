"""Calibrated networks, converted to integers."""

from __future__ import annotations

from qdiff_fx.api import convert_qdiff
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.sources.parts import Part
from qdiff_fx.workflow.parts import named
from qdiff_fx.workflow.run import Calibrated


def converted(
    found: Calibrated, backend: str, source: str, progress: bool | Progress
) -> tuple[QuantizedUNet | None, dict[Part, QuantizedUNet]]:
    """The network that denoises, and the other parts.

    Args:
        source: what the network that denoises is said to come from.
    """
    network = None
    if found.prepared is not None:
        with phase(progress, "saving", None, "network"):
            network = convert_qdiff(found.prepared, backend, source=source, schedule=found.job.request.schedule)
    parts: dict[Part, QuantizedUNet] = {}
    for part, prepared in found.parts.items():
        with named(progress, part.name), phase(progress, "saving", None, "network"):
            parts[part] = convert_qdiff(prepared, backend)
    return network, parts
