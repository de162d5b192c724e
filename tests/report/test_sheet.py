"""The sheet shows the images given, in order, at their brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdiff_fx.errors import ArtifactError, InputError
from qdiff_fx.report.sheet import GAP, sample_sheet, save_sheet


def constant(*levels: float, channels: int = 1, size: int = 32) -> torch.Tensor:
    """Images (N, C, size, size), each of one brightness in [-1, 1]."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, channels, size, size)


def tiles(sheet: Image.Image, count: int, rows: int, size: int) -> np.ndarray:
    """The middle pixel (rows, count, 3) of every tile, counted from the right edge of the sheet."""
    pixels = np.asarray(sheet)
    left = sheet.width - count * (size + GAP)
    return np.array(
        [
            [pixels[r * (size + GAP) + size // 2, left + n * (size + GAP) + size // 2] for n in range(count)]
            for r in range(rows)
        ]
    )


def test_every_image_is_in_its_place() -> None:
    sheet = sample_sheet({"FP": constant(-1, 0, 1), "W8A8": constant(1, -1, 0.5)})
    grey = tiles(sheet, count=3, rows=2, size=64)[..., 0]
    assert grey.tolist() == [[0, 128, 255], [255, 0, 191]]


def test_colours_are_kept() -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 64, 64)
    assert tiles(sample_sheet({"a": red}), 1, 1, 64).tolist() == [[[255, 0, 0]]]


def test_values_beyond_the_range_are_clipped() -> None:
    assert tiles(sample_sheet({"a": constant(-3, 3)}), 2, 1, 64)[0, :, 0].tolist() == [0, 255]


def test_images_of_at_least_64_pixels_are_not_enlarged() -> None:
    small = sample_sheet({"a": constant(0, size=16)})
    large = sample_sheet({"a": constant(0, size=100)})
    assert small.height == 64 + GAP
    assert large.height == 100 + GAP


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no rows"),
        ({"a": constant(0), "b": constant(0, 1)}, r"b: \(2, 1, 32, 32\)"),
        ({"a": torch.zeros(2, 4, 8, 8)}, "1 or 3"),
        ({"a": torch.zeros(0, 1, 8, 8)}, "1 or 3"),
        ({"a": torch.zeros(8, 8)}, "1 or 3"),
    ],
)
def test_what_is_no_sheet_is_refused(rows: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_sheet(rows)


def test_the_file_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = save_sheet({"a": constant(0, 1)}, tmp_path / "new" / "sheet.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"sheet\.png: it cannot be written"):
        save_sheet({"a": constant(0)}, tmp_path / "file" / "sheet.png")
