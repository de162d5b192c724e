"""Small squares of recorded images: what a network of convolutions does to them tells what it does to whole ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.calibration import CalibrationData
from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.signature.inputs import Size

PLACES = 2, 3
"""Height and width among an image's dimensions."""


def squares_of(
    prepared: PreparedUNet, batches: Iterable[Mapping[str, Any]], *, count: int, side: int
) -> list[list[Tensor]]:
    """The inputs of a network that takes images alone: squares, each by itself, drawn from some of the recorded ones.

    Args:
        batches: recorded inputs; squares come from images that are spread evenly over them.
        side: of a square; as near to it as the network's sizes go. Of a network that takes one size, whole images.
    Returns:
        for each of `count` squares the network's flat inputs.
    Raises:
        ConfigError: the network takes something besides.
        CalibrationError: there are no batches.
    """
    if len(prepared.signature.inputs) != 1:
        names = ", ".join(each.name for each in prepared.signature.inputs)
        raise ConfigError(
            f"it takes {names}, and squares are drawn of images alone",
            where="finer",
            fix="Choose bits for each layer with tune",
        )
    data = batches if isinstance(batches, CalibrationData) else CalibrationData(list(batches))
    batch_size = prepared.signature.sample.dims[0]
    together = batch_size if isinstance(batch_size, int) else 1
    images: list[Tensor] = []
    for batch in data.spread(count):
        images += prepared.signature.bind((), batch).tensors[0].split(together)
    if not images:
        raise CalibrationError("there are no batches", where="finer", fix="Pass those calibrate was given")
    generator = torch.Generator().manual_seed(0)
    return [[_square(prepared, images[index % len(images)], side, generator)] for index in range(count)]


def _square(prepared: PreparedUNet, image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    dims = prepared.signature.sample.dims
    sizes = [dims[place] for place in PLACES] if len(dims) == 4 else []
    if not sizes or not all(isinstance(size, Size) for size in sizes):
        return image.clone()
    for place, size in zip(PLACES, sizes, strict=True):
        multiple = size.multiple if isinstance(size, Size) else 1
        length = min(max(side // multiple, 1) * multiple, image.shape[place])
        start = int(torch.randint(image.shape[place] - length + 1, (), generator=generator))
        image = image.narrow(place, start, length)
    return image.clone()
