"""This package's backends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contender import Batch, Predict
from benchmarks.networks import Network
from benchmarks.variants import DEFAULT_VARIANT, is_alike, make_config, reconstruction_of

OURS = ("reference", "native", "inductor", "x86", "qnnpack")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Ours:
    """One backend of this package on one quantized network. Backends share the saved network."""

    backend: str
    dtype: str = ""
    variant: str = DEFAULT_VARIANT

    @property
    def artifact(self) -> str:
        return f"qdiff-{self.variant}"

    def prepare(self, unet: nn.Module, network: Network, batches: Iterable[Batch], folder: Path) -> None:
        # Loading, which is timed, needs none of it.
        from benchmarks.recipe import decided
        from qdiff_fx import convert_qdiff, save_qdiff

        config = make_config(self.variant, network.num_train_timesteps)
        more = {} if is_alike(self.variant) else {"finer": network.finer}
        preset = reconstruction_of(self.variant)
        prepared = decided(unet, config, network.inputs(), batches, preset, network.pieces, **more)
        save_qdiff(convert_qdiff(prepared, backend="reference"), folder)

    def load(self, network: Network, folder: Path) -> Predict:
        from qdiff_fx import load_qdiff

        options: dict[str, Any] = {"compute_dtype": DTYPES[self.dtype]} if self.dtype else {}
        return partial(network.predict, load_qdiff(folder, backend=self.backend, **options))
