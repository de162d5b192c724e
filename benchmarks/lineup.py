"""Contenders by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.contender import Contender
from benchmarks.ours import DTYPES, OURS, Ours
from benchmarks.rivals.openvino import OPENVINO
from benchmarks.rivals.plain_torch import PLAIN_TORCH
from benchmarks.variants import DEFAULT_VARIANT, parse_variant

ANCHOR = "torch-fp32"

# One name for several contenders, of which the fastest counts.
BEST_OF = {"openvino-int8": tuple(name for name in OPENVINO if name.startswith("openvino-int8-"))}


def get_contender(name: str) -> Contender:
    """A rival by its name, or one of ours by ``BACKEND[-DTYPE][-VARIANT]``; raises ValueError with what is known."""
    rivals: dict[str, Contender] = {**PLAIN_TORCH, **OPENVINO}
    if name in rivals:
        return rivals[name]
    match = re.fullmatch(rf"({'|'.join(OURS)})(?:-({'|'.join(DTYPES)}))?(?:-(w\d.*))?", name)
    if match is None:
        known = [*rivals, *BEST_OF, *(f"{backend}[-f32|-f16|-bf16][-w4a8…]" for backend in OURS)]
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(known)}")
    variant = match[3] or DEFAULT_VARIANT
    parse_variant(variant)
    return Ours(match[1], dtype=match[2] or "", variant=variant)


def expand(names: Iterable[str]) -> list[str]:
    """The contenders to run, each once: aliases replaced by what they stand for."""
    members = [member for name in names for member in BEST_OF.get(name, (name,))]
    return list(dict.fromkeys(members))
