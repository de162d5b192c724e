"""Guidance that ends early: what it costs and saves on the bundled digits, and its halves together or one by one.

``python -m benchmarks.guidance --network DIR --json out/guidance.json``: a saved network beside the float one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.output import Column, number, print_table, write_json
from qdiff_fx import load_qdiff
from qdiff_fx.bundled.digits import load_digit_classifier
from qdiff_fx.evaluation import frechet_distance, psnr_db
from qdiff_fx.sampling.guidance_until import guided_steps
from qdiff_fx.sources import SampleRequest
from qdiff_fx.sources.digits import DigitsSource

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)


@dataclass(frozen=True)
class Row:
    """Images of one seed.

    Attributes:
        share, guided: of the steps, and how many these are.
        halves: "together" in one batch, or "one by one".
        seconds: of the processor, for an image.
        psnr: to the images of the same network, guided to the end, in dB; None of those.
        psnr_of_float: to those of the float network.
        accuracy: share that shows the digit asked for.
        frechet: distance of the classifier's features to those of the float network's images.
    """

    network: str
    share: float
    guided: int
    halves: str
    seconds: float
    psnr: float | None
    psnr_of_float: float | None
    accuracy: float
    frechet: float


COLUMNS: dict[str, Column] = {
    "network": ("network", str),
    "guided steps": ("guided", str),
    "halves": ("halves", str),
    "CPU s for an image": ("seconds", number(4)),
    "PSNR, dB": ("psnr", number(1)),
    "to float, dB": ("psnr_of_float", number(1)),
    "classifier agrees": ("accuracy", number(3)),
    "Fréchet": ("frechet", number(3)),
}


@contextmanager
def one_by_one(network: nn.Module) -> Iterator[None]:
    """Inside the block the halves of a guided batch are computed one after the other."""
    own = network.forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Any:
        contexts = encoder_hidden_states.chunk(2)
        found = [own(half, timestep, context) for half, context in zip(sample.chunk(2), contexts, strict=True)]
        found[0].sample = torch.cat([each.sample for each in found])
        return found[0]

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


class Judge:
    """Compares with images of the float network, guided to the end; one image at a time is drawn."""

    def __init__(self, images: int, steps: int, seed: int):
        self._source, self._classifier = DigitsSource(), load_digit_classifier()
        self._images, self._steps, self._seed = images, steps, seed
        self._reference, _ = self._drawn(self._source.unet, 1.0)

    def rows(self, name: str, network: nn.Module) -> Iterator[Row]:
        whole, seconds = self._drawn(network, 1.0)
        yield self._row(name, whole, 1.0, "together", seconds, None)
        with one_by_one(network):
            images, seconds = self._drawn(network, 1.0)
        yield self._row(name, images, 1.0, "one by one", seconds, whole)
        for share in SHARES[1:]:
            images, seconds = self._drawn(network, share)
            yield self._row(name, images, share, "together", seconds, whole)

    @property
    def of_float(self) -> nn.Module:
        return self._source.unet

    def _drawn(self, network: nn.Module, share: float) -> tuple[Tensor, float]:
        asked = SampleRequest(self._images, self._steps, self._seed, guidance_until=share)
        requests = asked.batches(1)
        self._source.sample(network, requests[0])
        begun = time.process_time()
        images = torch.cat([self._source.sample(network, request) for request in requests])
        return images, (time.process_time() - begun) / self._images

    @torch.no_grad()
    def _row(self, name: str, images: Tensor, share: float, halves: str, seconds: float, whole: Tensor | None) -> Row:
        labels = self._source.labels(SampleRequest(self._images, self._steps))
        of_float = None if torch.equal(images, self._reference) else psnr_db(images, self._reference)
        accuracy = float((self._classifier(images).argmax(1) == labels).double().mean())
        features = [self._classifier.features(each) for each in (images, self._reference)]
        psnr = None if whole is None else psnr_db(images, whole)
        guided = guided_steps(share, self._steps)
        return Row(name, share, guided, halves, seconds, psnr, of_float, accuracy, frechet_distance(*features))


def main(
    network: Annotated[list[Path] | None, typer.Option(help="A saved network of the digits; repeatable.")] = None,
    images: Annotated[int, typer.Option(min=10, help="How many; the i-th shows the digit i mod 10.")] = 40,
    steps: Annotated[int, typer.Option(min=1)] = 25,
    seed: Annotated[int, typer.Option()] = 2,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """Print what guidance costs that ends after a share of the steps."""
    judge = Judge(images, steps, seed)
    rows = list(judge.rows("float", judge.of_float))
    for folder in network or ():
        quantized = load_qdiff(folder)
        rows += judge.rows(f"W{quantized.qconfig.weight_bits}A{quantized.qconfig.act_bits}", quantized)
    caption = f"{images} images one by one, {steps} steps, {torch.get_num_threads()} threads"
    print_table("guidance that ends early: digits", COLUMNS, rows, caption)
    if json is not None:
        write_json([asdict(row) for row in rows], json)


if __name__ == "__main__":
    typer.run(main)
