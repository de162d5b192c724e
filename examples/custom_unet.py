"""Quantize a hand-written UNet: no diffusers model, no config, attention spelled out in plain torch.

Run it, or give it to the command line, which needs `load_unet`, `make_scheduler` and `SAMPLE_SHAPE`:

    qdiff quantize examples/custom_unet.py --weight-bits 4 --out out/custom
    qdiff eval out/custom
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import nn

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff, round_weights, save_qdiff
from qdiff_fx.evaluation import eps_sqnr, trajectory

SAMPLE_SHAPE = (3, 16, 16)
CHANNELS = 32


class Attention(nn.Module):
    """Single-head self-attention over the pixels, written as two matrix products and a softmax."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Two convolutions with the timestep in between, and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.time = nn.Linear(CHANNELS, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """x (B, Cin, H, W), time (B, CHANNELS) -> (B, Cout, H, W)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.shortcut(x)


class UNet(nn.Module):
    """One level down, one level up, one concatenated shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(SAMPLE_SHAPE[0], CHANNELS, 3, padding=1)
        self.down = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1)
        self.middle = Block(2 * CHANNELS, 2 * CHANNELS)
        self.attention = Attention(2 * CHANNELS)
        self.up = nn.ConvTranspose2d(2 * CHANNELS, CHANNELS, 4, stride=2, padding=1)
        self.merge = Block(2 * CHANNELS, CHANNELS)
        self.last = nn.Conv2d(CHANNELS, SAMPLE_SHAPE[0], 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x (B, 3, 16, 16), t (B,) or a number -> (B, 3, 16, 16)."""
        time = waves(torch.as_tensor(t, device=x.device).expand(x.shape[0]))
        high = self.first(x)
        low = self.attention(self.middle(self.down(high), time))
        return self.last(self.merge(torch.cat([self.up(low), high], dim=1), time))


def waves(t: torch.Tensor) -> torch.Tensor:
    """Timesteps (B,) -> sinusoidal features (B, CHANNELS)."""
    angles = t[:, None].float() * torch.exp(-torch.arange(CHANNELS // 2) / 3)[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def load_unet() -> nn.Module:
    """The network; here with random weights."""
    torch.manual_seed(0)
    return UNet().eval()


def make_scheduler(steps: int) -> DDIMScheduler:
    """The sampler of the network."""
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(steps)
    return scheduler


def main() -> None:
    """Quantize to W4A8, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/custom-w4a8"))
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()

    unet, scheduler = load_unet(), make_scheduler(args.steps)
    # The float network's own trajectory: every step is one batch of calibration data.
    seen = trajectory(unet, scheduler, torch.randn(8, *SAMPLE_SHAPE))
    batches = [{"x": step.sample, "t": step.timestep} for step in seen.steps]

    prepared = prepare_qdiff(unet, QDiffConfig(weight_bits=4), batches[0])
    calibrate(prepared, batches)
    round_weights(prepared, batches)
    quantized = convert_qdiff(prepared, backend="reference")
    save_qdiff(quantized, args.out)

    decibels = eps_sqnr(quantized, trajectory(unet, scheduler, torch.randn(8, *SAMPLE_SHAPE)))
    print(quantized.explain())
    print(f"ε SQNR along the trajectory: {sum(decibels) / len(decibels):.1f} dB; saved {args.out}")


if __name__ == "__main__":
    main()
