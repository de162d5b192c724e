"""From latents to a picture: seconds and peak memory of decoders, interleaved, and how near they come to float.

``python -m benchmarks.decoder --models taef2-256,taef2-512,vae-sd15 --rounds 5``

The tiny decoder is trained: it is calibrated on the latents of pictures and judged on those of others, by the mean of
the PSNR to the float decoder's picture. Pictures come with scikit-image, or ``--pictures DIR`` names a folder of some.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.artifacts import artifact_cache, artifact_folder, ensure_artifact
from benchmarks.contender import Batch
from benchmarks.decoders import DECODERS, Decoder
from benchmarks.lineup import ANCHOR, expand, get_contender
from benchmarks.networks import shared_module
from benchmarks.output import Column, number, print_table, write_json
from benchmarks.pictures import find_pictures, load_pictures
from benchmarks.unet_step import Plan, StepRow, measure
from qdiff_fx.evaluation import psnr_db

OF_TRAINED, OF_RANDOM = "native-w8a8-secondorder,native-w4a8-secondorder", "native,native-w4a8"
PIXELS_PER_LATENT = 8
CALIBRATED_AT = {256: (0.0, 1.0), 512: (0.5,)}
"""Size of the pictures, and which squares of each."""


@dataclass(frozen=True)
class DecoderRow(StepRow):
    """A row of the step benchmark, a step being one picture.

    Attributes:
        psnr: to the float decoder's pictures in dB, mean over those held out; of trained decoders only.
        psnrs: of each of them.
        memory: peak memory of its process in units of the anchor's.
    """

    psnr: float | None = None
    psnrs: tuple[float, ...] = ()
    memory: float | None = None


COLUMNS: dict[str, Column] = {
    "decoder": ("model", str),
    "backend": ("backend", str),
    "s": ("seconds", number(3)),
    "× anchor": ("speedup", number(2)),
    "GOP/s": ("gops", number(0)),
    "peak MB": ("peak_rss_bytes", number(0, 1e-6)),
    "of anchor": ("memory", number(2)),
    "PSNR dB": ("psnr", number(1)),
}


class Judge:
    """Latents of pictures by the float encoder, to calibrate on and to judge on."""

    def __init__(self, pictures: Path | None):
        self._calibrate, self._judge = find_pictures(pictures)
        self._encoder: nn.Module = shared_module("taef2").load_encoder()

    @torch.no_grad()
    def batches(self) -> list[Batch]:
        sizes = CALIBRATED_AT.items()
        pictures = (picture for size, places in sizes for picture in load_pictures(self._calibrate, size, places))
        return [{"sample": self._encoder(picture)} for picture in pictures]

    @torch.no_grad()
    def psnrs(self, decoder: Decoder, predict: Any) -> Iterator[float]:
        """Of every picture that is held out."""
        exact = decoder.build(False)
        for picture in load_pictures(self._judge, decoder.sample_shape[-1] * PIXELS_PER_LATENT):
            latents = self._encoder(picture)
            expected, actual = (2 * run(sample=latents) - 1 for run in (exact, predict))
            yield psnr_db(actual, expected)


def judged(row: DecoderRow, judge: Judge, decoder: Decoder, cache: Path) -> DecoderRow:
    """The row with its PSNR, unless it is float's own."""
    contender = get_contender(row.backend)
    folder = artifact_folder(cache, decoder, contender)
    if row.error or folder is None:
        return row
    psnrs = tuple(judge.psnrs(decoder, contender.load(decoder, folder)))
    return replace(row, psnr=statistics.fmean(psnrs), psnrs=psnrs)


def is_trained(decoder: Decoder) -> bool:
    return decoder.folder == "taef2"


def measured(decoder: Decoder, names: list[str], plan: Plan, pictures: Path | None) -> list[DecoderRow]:
    """Rows of one decoder, the anchor first."""
    judge = Judge(pictures) if is_trained(decoder) else None
    for name in expand(names) if judge else ():
        ensure_artifact(plan.cache, decoder, get_contender(name), judge.batches() if judge else None)
    rows = [DecoderRow(**asdict(row)) for row in measure(decoder, names, plan)]
    anchor = rows[0].peak_rss_bytes
    rows = [replace(row, memory=row.peak_rss_bytes / anchor if row.peak_rss_bytes and anchor else None) for row in rows]
    return [judged(row, judge, decoder, plan.cache) for row in rows] if judge else rows


def main(
    models: Annotated[str, typer.Option(help="Comma-separated decoders.")] = "taef2-256,taef2-512,vae-sd15",
    backends: Annotated[str, typer.Option(help=f"Comma-separated; by default {OF_RANDOM}, rounded if trained.")] = "",
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Pictures of each backend, taken in turn.")] = 5,
    warmup: Annotated[int, typer.Option(min=1, help="Pictures before the first that counts.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each backend; 0: as many as torch takes.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Keep prepared decoders here for later runs.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder of pictures.")] = None,
) -> None:
    """Print seconds, peak memory and PSNR per decoder and backend."""
    chosen = [DECODERS[name.strip()] for name in models.split(",")]
    for name in expand(backends.split(",") if backends else ()):
        get_contender(name)
    rows: list[DecoderRow] = []
    with artifact_cache(cache) as folder:
        plan = Plan(folder, rounds, warmup, threads or torch.get_num_threads())
        for decoder in chosen:
            names = backends or (OF_TRAINED if is_trained(decoder) else OF_RANDOM)
            rows += measured(decoder, names.split(","), plan, pictures)
            if json is not None:
                write_json([asdict(row) for row in rows], json)
    caption = f"median of {rounds} interleaved pictures, {plan.threads} threads; anchor {ANCHOR}"
    print_table("from latents to a picture", COLUMNS, rows, caption)


if __name__ == "__main__":
    typer.run(main)
