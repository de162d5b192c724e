"""The decoders that are measured: from latents to a picture, with no timestep anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from benchmarks.networks import Network, randomly, shared_module
from qdiff_fx.sampling.prediction import prediction_of


@dataclass(frozen=True)
class Decoder(Network):
    """A decoder and the latents of one picture.

    Attributes:
        weights: what decoders of the same weights share; its name by default.
    """

    weights: str = ""

    @property
    def folder(self) -> str:
        return self.weights or self.name

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """Unit-normal latents."""
        generator = torch.Generator().manual_seed(seed)
        return {"sample": torch.randn(self.batch, *self.sample_shape, generator=generator)}

    def pieces(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Small squares of latents, drawn: a step costs what its largest picture does."""
        generator = torch.Generator().manual_seed(0)
        latents = [each for batch in batches for each in batch["sample"].split(1)]
        drawn = [_square(latents[i % len(latents)], generator) for i in range(PIECES)]
        return [{"sample": torch.cat(some)} for some in zip(*[iter(drawn)] * PIECES_AT_ONCE, strict=True)]

    def finer(self, prepared: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
        """As a decoder of a pipeline."""
        from qdiff_fx.sources.parts import VAE
        from qdiff_fx.tuning.finer import finer
        from qdiff_fx.workflow.parts import FINER

        return finer(prepared, batches, FINER[VAE])

    def predict(
        self, run: Callable[..., Any], sample: torch.Tensor, timestep: Any = None, **conditioning: Any
    ) -> torch.Tensor:
        return prediction_of(run(sample))


PIECES, PIECES_AT_ONCE, PIECE_SIZE = 64, 8, 8


def _square(latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    top, left = (int(torch.randint(size - PIECE_SIZE + 1, (), generator=generator)) for size in latents.shape[2:])
    return latents[..., top : top + PIECE_SIZE, left : left + PIECE_SIZE]


class _OfLatents(nn.Module):
    """A decoder whose only argument has the name that latents have here."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        picture: torch.Tensor = self.decoder(sample)
        return picture


def _taef2(meta: bool) -> nn.Module:
    module = shared_module("taef2")
    if not meta:
        return _OfLatents(module.load_decoder()).eval()
    with torch.device("meta"):
        return _OfLatents(module.build_decoder()).eval()


def _vae(**changes: Any) -> Any:
    """The decoder of Stable Diffusion 1.5 (49.5 M parameters)."""
    channels = changes.get("block_out_channels", (128, 256, 512, 512))
    config: dict[str, Any] = {
        "latent_channels": 4,
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }
    autoencoder: Any = AutoencoderKL(**(config | changes))
    return autoencoder.decoder


def _vae_tiny() -> Any:
    """Its layout at a thousandth of its size, to try the machinery on."""
    return _vae(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


TINY_LATENTS = 32

DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder("taef2-256", _taef2, 1, (TINY_LATENTS, 32, 32), weights="taef2"),
        Decoder("taef2-512", _taef2, 1, (TINY_LATENTS, 64, 64), weights="taef2"),
        Decoder("vae-sd15", randomly(_vae), 1, (4, 64, 64), together=3),
        Decoder("vae-tiny", randomly(_vae_tiny), 1, (4, 8, 8)),
    )
}
