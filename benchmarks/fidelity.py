"""How much quality a configuration keeps: ε SQNR along the FP trajectory, PSNR and Fréchet distance of its images.

``python -m benchmarks.fidelity --model anime --configs w8a8,w4a8 --backend inductor --json out/fidelity.json``

Calibration and test use different seeds. A configuration is a variant of ours (``w4a8-pertimestep``), ``fp``, or
the name of a rival (``openvino-int8-default-f32``), which then gets the same calibration data.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from tqdm import tqdm

from benchmarks.contender import Batch, Contender, Predict
from benchmarks.lineup import ANCHOR, get_contender
from benchmarks.networks import Network
from benchmarks.output import Column, number, print_table, write_json
from benchmarks.subjects import Subject, get_subject
from benchmarks.variants import is_variant
from qdiff_fx.evaluation import Trajectory, eps_sqnr, frechet_distance, psnr_db

IMAGES_PER_BATCH = 4
"""Images calibrated on, images of the ε SQNR, and images denoised at a time (some rivals fix the batch)."""


@dataclass(frozen=True)
class FidelityRow:
    """One configuration of one network. Infinite ratios (no error at all) are null in JSON.

    Attributes:
        sqnr_db_steps: SQNR of ε at every step of the FP trajectory, from noise to image.
        psnr_db: mean over `images` of the PSNR of final images, from the same noise.
        frechet: distance between features of `frechet_images` FP and as many quantized images; biased upwards for
            few images, so compare only rows of equal `frechet_images`.
        class_accuracy, fp_class_accuracy: share of images that show the class asked for, of the FP network's too; None
            where there are no classes.
    """

    model: str
    config: str
    backend: str
    steps: int
    images: int
    frechet_images: int
    calibration_seed: int
    test_seed: int
    sqnr_db_mean: float | None = None
    sqnr_db_last: float | None = None
    sqnr_db_steps: tuple[float, ...] = ()
    psnr_db: float | None = None
    frechet: float | None = None
    class_accuracy: float | None = None
    fp_class_accuracy: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Reference:
    """What the FP network does from the test noise: one recorded batch, and all final images."""

    noise: torch.Tensor
    recorded: Trajectory
    finals: torch.Tensor


def draw_noise(network: Network, seed: int, images: int) -> torch.Tensor:
    return torch.randn(images, *network.sample_shape, generator=torch.Generator().manual_seed(seed))


def batches_of(images: int, first: int = 0, size: int = IMAGES_PER_BATCH) -> Iterator[range]:
    """Image numbers from `first` on, a batch at a time."""
    for start in range(first, images, size):
        yield range(start, min(start + size, images))


def run_reference(subject: Subject, unet: nn.Module, noise: torch.Tensor, at_once: int = IMAGES_PER_BATCH) -> Reference:
    """The FP trajectory of the first batch of `noise`, and the final images of all of it."""
    recorded = subject.trajectory(unet, noise[:IMAGES_PER_BATCH], range(IMAGES_PER_BATCH))
    rest = sample(subject, unet, noise, IMAGES_PER_BATCH, at_once)
    return Reference(noise, recorded, torch.cat([recorded.final, rest]))


def sample(
    subject: Subject, predict: Any, noise: torch.Tensor, first: int = 0, at_once: int = IMAGES_PER_BATCH
) -> torch.Tensor:
    """The images that `predict` makes of `noise[first:]`."""
    finals = [noise[:0]]
    for images in tqdm(list(batches_of(len(noise), first, at_once)), desc="images", leave=False):
        finals.append(subject.generate(predict, noise[images.start : images.stop], images))
    return torch.cat(finals)


def compare(
    subject: Subject, predict: Predict, reference: Reference, row: FidelityRow, at_once: int = IMAGES_PER_BATCH
) -> FidelityRow:
    """The row with its figures filled in."""
    sqnr = eps_sqnr(predict, reference.recorded, progress=True)
    finals = sample(subject, predict, reference.noise, at_once=at_once)
    judged = slice(row.frechet_images)
    return replace(
        row,
        sqnr_db_mean=statistics.fmean(sqnr),
        sqnr_db_last=sqnr[-1],
        sqnr_db_steps=tuple(sqnr),
        psnr_db=psnr_db(finals[: row.images], reference.finals[: row.images]),
        frechet=frechet_distance(subject.features(reference.finals[judged]), subject.features(finals[judged])),
        class_accuracy=subject.class_accuracy(finals),
        fp_class_accuracy=subject.class_accuracy(reference.finals),
    )


def contender_of(config: str, backend: str) -> tuple[str, Contender]:
    """The contender a configuration means, and its name: ours on `backend`, or a rival, or FP."""
    name = ANCHOR if config == "fp" else f"{backend}-{config}" if is_variant(config) else config
    return name, get_contender(name)


def quantize(
    subject: Subject, contender: Contender, unet: nn.Module, batches: Sequence[Batch], folder: Path
) -> Predict:
    """The contender ready to predict, after preparing it on the calibration data."""
    network = replace(subject.network, batch=IMAGES_PER_BATCH * subject.halves)
    if contender.artifact:
        contender.prepare(unet, network, batches, folder)
    return contender.load(network, folder)


COLUMNS: dict[str, Column] = {
    "config": ("config", str),
    "backend": ("backend", str),
    "ε SQNR dB": ("sqnr_db_mean", number(1)),
    "last step dB": ("sqnr_db_last", number(1)),
    "PSNR dB": ("psnr_db", number(1)),
    "Fréchet": ("frechet", number(2)),
    "class accuracy": ("class_accuracy", number(3)),
    "of FP": ("fp_class_accuracy", number(3)),
}


def main(
    model: Annotated[str, typer.Option(help="anime or digits.")] = "digits",
    configs: Annotated[str, typer.Option(help="Comma-separated: fp, w8a8, w4a8-pertimestep, a rival's name.")] = (
        "w8a8,w4a8"
    ),
    backend: Annotated[str, typer.Option(help="The backend of our configurations.")] = "native",
    seeds: Annotated[str, typer.Option(help="CAL,TEST: seeds of calibration and test noise.")] = "1,2",
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps.")] = 25,
    images: Annotated[int, typer.Option(min=4, help="Images of the PSNR.")] = 16,
    frechet_images: Annotated[int, typer.Option(help="Images of the Fréchet distance; 0: as many as the PSNR.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = IMAGES_PER_BATCH,
) -> None:
    """ε SQNR along the FP trajectory, PSNR of final images and Fréchet distance, as a table and as JSON."""
    calibration_seed, test_seed = (int(seed) for seed in seeds.split(","))
    chosen = [(config.strip(), *contender_of(config.strip(), backend)) for config in configs.split(",")]
    subject = get_subject(model, steps)
    unet = subject.network.build(False)
    batches = list(subject.collect(unet, IMAGES_PER_BATCH, calibration_seed))
    frechet_images = frechet_images or images
    noise = draw_noise(subject.network, test_seed, max(images, frechet_images))
    reference = run_reference(subject, unet, noise, at_once)
    rows: list[FidelityRow] = []
    for config, name, contender in chosen:
        row = FidelityRow(model, config, name, steps, images, frechet_images, calibration_seed, test_seed)
        with tempfile.TemporaryDirectory(prefix="qdiff-fidelity-") as folder:
            rows.append(_measure(subject, contender, unet, batches, reference, row, Path(folder) / "artifact", at_once))
        if json is not None:
            write_json([asdict(row) for row in rows], json)
    caption = f"{steps} DDIM steps, PSNR of {images} images, Fréchet distance of {frechet_images}, seeds {seeds}"
    print_table(f"{model}: fidelity to FP", COLUMNS, rows, caption)


def _measure(
    subject: Subject,
    contender: Contender,
    unet: nn.Module,
    batches: Sequence[Batch],
    reference: Reference,
    row: FidelityRow,
    folder: Path,
    at_once: int,
) -> FidelityRow:
    """The finished row; a configuration that fails says so and lets the others go on."""
    try:
        return compare(subject, quantize(subject, contender, unet, batches, folder), reference, row, at_once)
    except Exception as error:
        return replace(row, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    typer.run(main)
