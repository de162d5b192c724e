"""What is known about a quantized network, as one HTML page that refers to no other file."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import torch
from PIL import Image

from qdiff_fx.report.amounts import milliseconds
from qdiff_fx.report.svg import curve, sparkline

SMALLEST_TILE = 256
"""Pixels: smaller images are enlarged by a whole factor."""


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        bits: of weights and inputs, "4/8"; empty in float.
        sqnr_db: of its output against the float network's, mean over the steps looked at; None where unknown.
        seconds: its kernel takes; None where unknown.
        ranges: of its input, in every timestep bin.
        remark: why it is in float, or what else there is to say.
    """

    path: str
    kind: str
    bits: str
    kernel: str
    sqnr_db: float | None = None
    seconds: float | None = None
    ranges: Sequence[tuple[float, float]] = ()
    remark: str = ""


@dataclass(frozen=True)
class NetworkReport:
    """All that the page shows.

    Attributes:
        facts: name → value, in the order shown.
        timesteps: of the steps.
        eps: backend → SQNR of the prediction in dB at every step.
        pictures: label → images (N, 1 or 3, H, W) in [-1, 1]; the first two are laid one over the other.
    """

    title: str
    facts: Mapping[str, str]
    layers: Sequence[LayerRow]
    timesteps: Sequence[float] = ()
    eps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)


def network_page(report: NetworkReport) -> str:
    """The page as text."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("network.css", "network.js"))
    title = html.escape(report.title)
    body = "\n".join(
        [
            f"<h1>{title}</h1>",
            _facts(report.facts),
            _pictures(report.pictures),
            _curves(report),
            _layers(report.layers),
        ]
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title>\n<style>\n{style}</style></head>\n<body>\n{body}\n<script>\n{script}</script>\n"
        f"</body>\n</html>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def _pictures(pictures: Mapping[str, torch.Tensor]) -> str:
    if len(pictures) < 2:
        return ""
    (before, first), (after, second) = list(pictures.items())[:2]
    pairs = "\n".join(
        f'<div class="pair"><img alt="{html.escape(before)}" src="{_png(one)}">'
        f'<img class="over" alt="{html.escape(after)}" src="{_png(other)}">'
        '<input type="range" min="0" max="100" value="50" aria-label="how much of either"></div>'
        for one, other in zip(first, second, strict=True)
    )
    text = f"Left of the handle {before}, right of it {after}, from the same noise."
    return f'<h2>Pictures</h2>\n<p>{html.escape(text)}</p>\n<div class="pairs">{pairs}</div>'


def _png(image: torch.Tensor) -> str:
    pixels = ((image.detach().float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().byte().expand(3, -1, -1)
    factor = max(1, -(-SMALLEST_TILE // max(pixels.shape[-2:])))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _curves(report: NetworkReport) -> str:
    if not report.eps:
        return ""
    drawn = curve(report.timesteps, report.eps, "timestep", "dB")
    text = "Signal-to-noise ratio of the prediction on the float network's own inputs, from noise to image."
    return f"<h2>Every step</h2>\n<p>{text}</p>\n{drawn}"


def _layers(rows: Sequence[LayerRow]) -> str:
    if not rows:
        return ""
    names = ("layer", "kind", "W/A", "kernel", "SQNR, dB", "time", "input ranges", "remark")
    head = "".join(f'<th><button type="button">{name}</button></th>' for name in names)
    body = "\n".join("<tr>" + "".join(_cells(row)) + "</tr>" for row in rows)
    text = (
        "In the order they run; a click on a heading sorts. Each SQNR is of what the layer returns, with all errors up "
        "to there. Ranges are drawn from noise to image."
    )
    return f"<h2>Layers</h2>\n<p>{text}</p>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def _cells(row: LayerRow) -> list[str]:
    error = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}" if math.isfinite(row.sqnr_db) else "exact"
    width = max((high - low for low, high in row.ranges), default=0.0)
    return [
        _cell(row.path),
        _cell(row.kind),
        _cell(row.bits or "float"),
        _cell(row.kernel),
        _cell(error, row.sqnr_db),
        _cell("" if row.seconds is None else milliseconds(row.seconds), row.seconds),
        # Bins count from the image on; sampling goes the other way.
        f'<td data-sort="{width:g}">{sparkline(list(row.ranges)[::-1])}</td>',
        _cell(row.remark),
    ]


def _cell(text: str, number: float | None = None) -> str:
    key = "" if number is None else f' data-sort="{number:g}"'
    return f"<td{key}>{html.escape(text)}</td>"
