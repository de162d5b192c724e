"""`--parts unet,vae=w4a8,text`: which networks of a pipeline, and the folder that they are saved in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from qdiff_fx.atomic import check_writable, entries
from qdiff_fx.cli.output import Output
from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.report.bits import bits_of_layers
from qdiff_fx.report.comparison import megabytes
from qdiff_fx.report.layers import float_layers_table, layers_json
from qdiff_fx.sources.parts import UNET
from qdiff_fx.storage.artifact import artifact_bytes
from qdiff_fx.storage.pipeline_index import INDEX, read_index
from qdiff_fx.workflow.job import WantedPart
from qdiff_fx.workflow.parts import wanted_parts
from qdiff_fx.workflow.pipeline import DonePipeline

ALL = "all"


def parse_parts(text: str) -> tuple[bool, tuple[WantedPart, ...]]:
    """Whether the network that denoises is among them, and the others with how they are quantized.

    Raises:
        ConfigError: there is no such part, or these are no bits.
    """
    if text == ALL:
        return wanted_parts(None)
    named = dict(each.strip().partition("=")[::2] for each in text.split(","))
    bits = {word: each for word, each in named.items() if each}
    if UNET in bits:
        raise ConfigError("its bits are options of their own", where="--parts", fix="Give --weight-bits and --act-bits")
    return wanted_parts(list(named), bits)


def check_pipeline_target(out: Path) -> None:
    """Raises ArtifactError when the folder cannot be written, or holds anything but a pipeline with quantized parts."""
    check_writable(out)
    if not out.exists() or (out.is_dir() and not entries(out)):
        return
    ours = (out / INDEX).is_file() and any(library == "qdiff_fx" for library, _ in read_index(out).values())
    if not ours:
        raise ArtifactError("it exists and is no pipeline saved by this", where=str(out), fix="Choose another --out")


def report_pipeline(done: DonePipeline, out: Path, output: Output) -> None:
    """What became of every part."""
    for line in done.left.values():
        output.note(line)
    for name, network in done.networks.items():
        output.show(float_layers_table(network.explain().rows, name))
        output.show(f"{name}: {bits_of_layers(network.graph_module)}")
    output.show(f"wrote {out}: {megabytes(artifact_bytes(out))}, of which {', '.join(done.networks)} are quantized")


def pipeline_figures(done: DonePipeline, out: Path, source: str) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "folder": str(out),
        "bytes": artifact_bytes(out),
        "source": source,
        "parts": {
            name: {
                "config": network.qconfig.to_json(),
                "bits": asdict(bits_of_layers(network.graph_module)),
                "layers": layers_json(network.explain().rows),
            }
            for name, network in done.networks.items()
        },
        "in_float": dict(done.left),
    }
