"""A contact sheet: one labelled row of samples per network, the same noise in every column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from qdiff_fx.atomic import replacing_file
from qdiff_fx.errors import InputError

GAP = 2
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
SMALLEST_TILE = 64


def sample_sheet(rows: Mapping[str, torch.Tensor]) -> Image.Image:
    """The picture of ``{label: images}``; all rows hold as many images of the same size.

    Args:
        rows: label → images (N, C, H, W) in [-1, 1] with one or three channels, drawn top to bottom.

    Raises:
        InputError: there are no rows, they differ in shape, or they are no images.
    """
    shape = _common_shape(rows)
    scale = max(1, -(-SMALLEST_TILE // max(shape[-2:])))
    strips = {label: _strip(images, scale) for label, images in rows.items()}
    font = ImageFont.load_default(size=max(12, shape[-2] * scale // 5))
    margin = max(int(font.getlength(label)) for label in rows) + 12
    width, height = next(iter(strips.values())).size
    sheet = Image.new("RGB", (margin + width, len(rows) * height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for index, (label, strip) in enumerate(strips.items()):
        pen.text((6, index * height + height // 2), label, fill=INK, font=font, anchor="lm")
        sheet.paste(strip, (margin, index * height))
    return sheet


def save_sheet(rows: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write `sample_sheet` as a PNG file, whole or not at all."""
    sheet = sample_sheet(rows)
    with replacing_file(path) as draft:
        sheet.save(draft, format="PNG", optimize=True)
    return path


def _common_shape(rows: Mapping[str, torch.Tensor]) -> torch.Size:
    shapes = {label: images.shape for label, images in rows.items()}
    if len(set(shapes.values())) != 1:
        found = ", ".join(f"{label}: {tuple(shape)}" for label, shape in shapes.items()) or "no rows"
        raise InputError(f"rows of one shape are needed, got {found}", where="sample sheet")
    shape = next(iter(shapes.values()))
    if len(shape) != 4 or shape[0] == 0 or shape[1] not in (1, 3):
        raise InputError(f"shape {tuple(shape)} is not (N, 1 or 3, H, W)", where="sample sheet")
    return shape


def _strip(images: torch.Tensor, scale: int) -> Image.Image:
    """Images (N, C, H, W) side by side, enlarged by a whole factor so pixels stay square and sharp."""
    pixels = ((images.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    pixels = pixels.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    count, height, width, _ = pixels.shape
    strip = np.full((height + GAP, count * (width + GAP), 3), BACKGROUND, dtype=np.uint8)
    for index, tile in enumerate(pixels.numpy()):
        left = index * (width + GAP)
        strip[:height, left : left + width] = tile
    return Image.fromarray(strip)
