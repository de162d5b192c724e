"""Captions to calibrate on where nobody gives prompts: plain descriptions, written for this package; public domain.

They are of many subjects, styles and lengths. A network that draws one kind of thing is better calibrated on its own.
"""

from __future__ import annotations

from importlib.resources import files


def captions() -> tuple[str, ...]:
    """All of them, one a line of `captions.txt`."""
    text = files("qdiff_fx.bundled").joinpath("captions.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
