"""One LoRA: from the names that files and diffusers give its matrices to a pair of them for each layer.

Hu et al., arXiv 2106.09685: W + (alpha / r) B A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qdiff_fx.errors import ConfigError
from qdiff_fx.passes.low_rank import WAY_OUT, LowRank

MATRIX = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
ALPHA = ".alpha"


@dataclass(frozen=True)
class Adapter:
    """What is added to the layers of a network, by their module paths, at a weight of one."""

    layers: Mapping[str, LowRank]


def read_adapter(
    tensors: Mapping[str, Tensor],
    prefix: str | None = "unet",
    alphas: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Adapter:
    """The LoRA in tensors that are named as PEFT or diffusers name them.

    Args:
        tensors: "unet.<module>.lora_A.weight" and "lora_B", or older names of diffusers.
        prefix: only what is under it is read; None: everything.
        alphas: by "unet.<module>.alpha", where the tensors do not hold them; r without either.
        metadata: PEFT's configuration, which diffusers finds in a file's header.
    Raises:
        ConfigError: it is no plain LoRA, or a matrix lacks its other half.
    """
    own = _under(prefix, tensors)
    known = {
        name.split(".lora_A.")[0].removesuffix(ALPHA): float(each) for name, each in _under(prefix, alphas).items()
    }
    known |= {name.removesuffix(ALPHA): float(each) for name, each in own.items() if name.endswith(ALPHA)}
    matrices = _named({name: each for name, each in own.items() if not name.endswith(ALPHA)})
    scaling = _Scaling(known, _under(prefix, metadata))
    layers = {}
    for path in sorted({path for path, _ in matrices}):
        down, up = matrices.get((path, "A")), matrices.get((path, "B"))
        if down is None or up is None:
            raise ConfigError(f"it has no lora_{'B' if up is None else 'A'}", where=f"LoRA, {path}", fix=WAY_OUT)
        layers[path] = LowRank(down.detach().float(), up.detach().float() * scaling.of(path, len(down)))
    return Adapter(layers)


def _under(prefix: str | None, named: Mapping[str, Any] | None) -> dict[str, Any]:
    if prefix is None:
        return dict(named or {})
    start = f"{prefix}."
    return {name.removeprefix(start): each for name, each in (named or {}).items() if name.startswith(start)}


def _named(tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """By path and side; older names of diffusers are read as it reads them."""
    if any(MATRIX.fullmatch(name) is None for name in tensors):
        from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

        tensors = convert_unet_state_dict_to_peft(dict(tensors))
    found: dict[tuple[str, str], Tensor] = {}
    for name, tensor in tensors.items():
        matched = MATRIX.fullmatch(name)
        if matched is None:
            raise ConfigError(
                "it is no matrix of a plain LoRA (DoRA, LoKr, LoHa and biases are others)", where=name, fix=WAY_OUT
            )
        found[matched["path"], matched["side"]] = tensor
    return found


class _Scaling:
    """alpha / r of every layer."""

    def __init__(self, alphas: Mapping[str, float], metadata: Mapping[str, Any]):
        self._alphas, self._general = alphas, metadata.get("lora_alpha")
        self._pattern = {key.lstrip("^"): float(each) for key, each in (metadata.get("alpha_pattern") or {}).items()}
        self._by_root = bool(metadata.get("use_rslora"))
        if metadata.get("use_dora"):
            raise ConfigError("it is a DoRA, which scales whole weights", where="LoRA", fix=WAY_OUT)

    def of(self, path: str, rank: int) -> float:
        special = next((each for key, each in self._pattern.items() if f".{path}".endswith(f".{key}")), self._general)
        alpha = self._alphas.get(path, rank if special is None else special)
        return float(alpha) / (math.sqrt(rank) if self._by_root else rank)
