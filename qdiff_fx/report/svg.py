"""Small drawings in a page: curves over the timesteps, and ranges."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 720, 240, 44
SPARK = (120, 26)
COLOURS = ("#1f3f7f", "#c0562f", "#4f8f4f", "#7f4f8f")
TICKS = 4


def curve(xs: Sequence[float], curves: Mapping[str, Sequence[float]], across: str, up: str) -> str:
    """Lines over what they share, in the order given; what is not finite leaves a gap."""
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    if not finite or not xs:
        return ""
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - 1, high + 1

    def x(index: int) -> float:
        return MARGIN + index * (WIDTH - 2 * MARGIN) / max(1, len(xs) - 1)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (value - low) * (HEIGHT - 2 * MARGIN) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(up)} over {html.escape(across)}">'
    ]
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    for index in sorted({0, len(xs) // 2, len(xs) - 1}):
        parts.append(f'<text x="{x(index):.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{xs[index]:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(across)}</text>')
    parts.append(f'<text x="6" y="16">{html.escape(up)}</text>')
    for number, (name, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values) if math.isfinite(value))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        right = WIDTH - MARGIN - 8
        parts.append(
            f'<text x="{right}" y="{16 + 16 * number}" text-anchor="end" fill="{colour}">{html.escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def sparkline(ranges: Sequence[tuple[float, float]]) -> str:
    """Lowest and highest value side by side, as a band around zero; empty where there is none."""
    if not ranges:
        return ""
    width, height = SPARK
    least, most = min(low for low, _ in ranges), max(high for _, high in ranges)
    span = (most - least) or 1.0

    def y(value: float) -> float:
        return height - 1 - (value - least) * (height - 2) / span

    # A range for all timesteps is a band as wide as the drawing.
    drawn = list(ranges) if len(ranges) > 1 else [ranges[0], ranges[0]]
    step = width / (len(drawn) - 1)
    upper = [f"{index * step:.1f},{y(high):.1f}" for index, (_, high) in enumerate(drawn)]
    lower = [f"{index * step:.1f},{y(low):.1f}" for index, (low, _) in enumerate(drawn)]
    label = f"{least:.3g} to {most:.3g}"
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<polygon points="{" ".join([*upper, *reversed(lower)])}"/>'
        f'<line x1="0" x2="{width}" y1="{y(0):.1f}" y2="{y(0):.1f}"/></svg>'
    )
