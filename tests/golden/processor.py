"""The kind of processor results belong to: what torch and our kernels use of it, and what torch computes with it."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from qdiff_fx.kernels import status

from .digests import in_order

PROBE_LETTERS = 8


@dataclass(frozen=True)
class Processor:
    """One kind of processor, under one release of torch.

    Attributes:
        torch_isa: the instruction set torch chose for its own kernels, e.g. "AVX512".
        kernels: the one of our kernels, or "none".
        probe: digest of some float results of torch, which also depend on the vendor and on libraries' switches.
        torch_version: the release the record was made with.
    """

    machine: str
    torch_isa: str
    kernels: str
    probe: str
    torch_version: str

    @property
    def key(self) -> str:
        """Names the record: equal keys must give equal results."""
        return "-".join((self.machine, self.torch_isa.lower(), self.kernels, self.probe[:PROBE_LETTERS]))

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def this_processor() -> Processor:
    """The one this process runs on; builds the kernels if need be."""
    return Processor(
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        status().kernel or "none",
        _probe(),
        torch.__version__,
    )


@torch.no_grad()
def _probe() -> str:
    """Digest of one result of each library torch computes a UNet with: MKL, oneDNN, its own vectorised loops."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 48, 24, 24, generator=generator)
    weight = torch.randn(40, 48, 3, 3, generator=generator) / 20
    convolved = F.conv2d(image, weight, padding=1)
    tokens = convolved.flatten(2).transpose(1, 2).contiguous()
    normed = F.silu(F.group_norm(convolved, 8))
    attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
    multiplied = F.linear(tokens, weight.flatten(1)[:, :40])
    return in_order((image, convolved, normed, attended, multiplied, tokens.softmax(-1), tokens.sin(), tokens.sum(1)))
