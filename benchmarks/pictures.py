"""Pictures that decoders are calibrated and judged on: those that come with scikit-image, or a folder of one's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CALIBRATION = ("coffee", "motorcycle_left", "rocket", "hubble_deep_field", "ihc", "retina", "camera", "brick")
HELD_OUT = ("astronaut", "chelsea", "motorcycle_right", "coins")
SUFFIXES = (".png", ".jpg", ".jpeg")


def find_pictures(folder: Path | None) -> tuple[list[Path], list[Path]]:
    """Files to calibrate on and files to judge on: of a folder every third, in the order of their names, is judged.

    Raises:
        FileNotFoundError: there are none; it says where they would come from.
    """
    if folder is not None:
        found = sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES)
        if len(found) < 3:
            raise FileNotFoundError(f"{folder} holds {len(found)} pictures, fewer than three")
        return [each for i, each in enumerate(found) if i % 3], found[::3]
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError("there are no pictures: install scikit-image, or name a folder of some with --pictures")
    data = Path(package.origin).parent / "data"
    named = [[path for name in names for path in data.glob(f"{name}.*")] for names in (CALIBRATION, HELD_OUT)]
    if not all(named):
        raise FileNotFoundError(f"{data} holds none of the pictures that are looked for; name a folder with --pictures")
    return named[0], named[1]


def load_picture(path: Path, size: int, place: float = 0.5) -> torch.Tensor:
    """float32 (1, 3, size, size) in [0, 1]: a square of the picture, as large as it can be.

    Args:
        path: of the file.
        size: pixels.
        place: where along the longer side the square lies, from 0 to 1.
    """
    with Image.open(path) as file:
        picture = file.convert("RGB")
    side = min(picture.size)
    left, top = (round((length - side) * place) for length in picture.size)
    square = picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255


def load_pictures(paths: Sequence[Path], size: int, places: Sequence[float] = (0.5,)) -> Iterator[torch.Tensor]:
    """Each picture as `load_picture` makes it, once for every place."""
    for path in paths:
        for place in places:
            yield load_picture(path, size, place)
