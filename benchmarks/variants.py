"""Names for quantization settings: ``w4a8-pertimestep-nosplit`` means 4-bit weights, 8-bit activations, and so on.

A last part ``-fast``, ``-standard`` or ``-paper`` asks for that reconstruction. ``-alike`` keeps all layers of a
decoder at these bits, where its recipe has more for a few.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdiff_fx import QDiffConfig

DEFAULT_VARIANT = "w8a8"

BITS = re.compile(r"w(\d+)(?:a(\d+))?")
SUFFIXES: dict[str, dict[str, Any]] = {
    "pertimestep": {"act_granularity": "timestep"},
    "pertensor": {"act_granularity": "tensor"},
    "nosplit": {"split": "off"},
    "splitall": {"split": "all"},
    "minmax": {"act_range": "minmax"},
    "percentile": {"act_range": "percentile"},
    "secondorder": {"weight_rounding": "second_order"},
    "sameedges": {"edge_weight_bits": 2, "sample_act_bits": 8},
    "maxweights": {"weight_range": "max"},
    "floatattention": {"quantize_attention": False},
    "softmax16": {"softmax_bits": 16},
    "alike": {},
}
RECONSTRUCTIONS = ("fast", "standard", "paper")


def is_variant(name: str) -> bool:
    """Whether the name starts as a variant's does."""
    return BITS.fullmatch(name.split("-")[0]) is not None


def parse_variant(name: str) -> dict[str, Any]:
    """``w{bits}[a{bits}][-suffix…]`` to `QDiffConfig` fields; raises ValueError that lists the suffixes."""
    bits, *suffixes = name.split("-")
    match = BITS.fullmatch(bits)
    known = (*SUFFIXES, *RECONSTRUCTIONS)
    if match is None or any(suffix not in known for suffix in suffixes):
        raise ValueError(f"cannot read {name!r}: write w4a8, then any of {', '.join(f'-{s}' for s in known)}")
    fields: dict[str, Any] = {"weight_bits": int(match[1]), "act_bits": int(match[2] or 8)}
    for suffix in suffixes:
        fields |= SUFFIXES.get(suffix, {})
    return fields


def make_config(variant: str, num_train_timesteps: int) -> QDiffConfig:
    """The configuration a variant's name stands for."""
    from qdiff_fx import QDiffConfig

    return QDiffConfig.from_json({"num_train_timesteps": num_train_timesteps, **parse_variant(variant)})


def is_alike(variant: str) -> bool:
    """Whether a decoder's layers all keep the bits of the variant."""
    return "alike" in variant.split("-")


def reconstruction_of(variant: str) -> str:
    """The preset a variant asks for; empty for none."""
    return next((suffix for suffix in variant.split("-") if suffix in RECONSTRUCTIONS), "")
