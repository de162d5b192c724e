"""Small random networks of every shape this package has to take, each with example inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from qdiff_fx import PreparedUNet, QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.capture import CapturedGraph, capture
from tests.smallest import ONE_CROSS_ATTENTION, ONE_RESOLUTION

BATCH, SIZE, TOKENS = 2, 16, 5


@dataclass(frozen=True)
class Architecture:
    """How to build one network (eval mode) with its example inputs, and what its graph must hold.

    up_concats: shortcut concatenations in the up path. attentions: softmax(q k) v products.
    """

    build: Callable[[], tuple[nn.Module, dict[str, Any]]]
    up_concats: int
    attentions: int

    def __call__(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.build()


def noise(channels: int, batch: int = BATCH, size: int = SIZE) -> torch.Tensor:
    return torch.randn(batch, channels, size, size)


def unconditional(**changes: Any) -> UNet2DModel:
    """A DDPM-style UNet: two resolutions, attention at the lower one, unless `changes` say otherwise."""
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DModel(**(settings | changes)).eval()


def conditional(**changes: Any) -> UNet2DConditionModel:
    """A Stable-Diffusion-style UNet: a resolution with cross-attention and one without."""
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | changes)).eval()


def prompt(dim: int = 24, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(BATCH, tokens, dim)


def ddpm_cifar() -> tuple[nn.Module, dict[str, Any]]:
    model = unconditional(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return model, {"sample": noise(3), "timestep": 7}


def ddpm_class() -> tuple[nn.Module, dict[str, Any]]:
    return unconditional(num_class_embeds=10), {
        "sample": noise(3),
        "timestep": torch.tensor(7),
        "class_labels": torch.tensor([1, 9]),
    }


def ddpm_scale_shift() -> tuple[nn.Module, dict[str, Any]]:
    return unconditional(resnet_time_scale_shift="scale_shift"), {
        "sample": noise(3),
        "timestep": torch.tensor([7, 80]),
    }


def ddpm_resnet_downsample() -> tuple[nn.Module, dict[str, Any]]:
    return unconditional(downsample_type="resnet", upsample_type="resnet"), {"sample": noise(3), "timestep": 7}


def three_levels() -> UNet2DConditionModel:
    return conditional(
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def sd1() -> tuple[nn.Module, dict[str, Any]]:
    return three_levels(), {"sample": noise(4), "timestep": torch.tensor(301), "encoder_hidden_states": prompt()}


def sd2() -> tuple[nn.Module, dict[str, Any]]:
    return conditional(use_linear_projection=True, attention_head_dim=(2, 4)), {
        "sample": noise(4),
        "timestep": torch.tensor(301),
        "encoder_hidden_states": prompt(),
    }


def sdxl() -> tuple[nn.Module, dict[str, Any]]:
    model = conditional(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    condition = {"text_embeds": torch.randn(BATCH, 16), "time_ids": torch.rand(BATCH, 6) * 64}
    return model, {
        "sample": noise(4),
        "timestep": 301,
        "encoder_hidden_states": prompt(),
        "added_cond_kwargs": condition,
    }


def inpainting() -> tuple[nn.Module, dict[str, Any]]:
    return conditional(in_channels=9), {"sample": noise(9), "timestep": 301, "encoder_hidden_states": prompt()}


def sd_class() -> tuple[nn.Module, dict[str, Any]]:
    return conditional(num_class_embeds=10), {
        "sample": noise(4),
        "timestep": 301,
        "encoder_hidden_states": prompt(),
        "class_labels": torch.tensor([3, 0]),
    }


def lcm() -> tuple[nn.Module, dict[str, Any]]:
    return conditional(time_cond_proj_dim=12), {
        "sample": noise(4),
        "timestep": 301,
        "encoder_hidden_states": prompt(),
        "timestep_cond": torch.randn(BATCH, 12),
    }


def controlnet() -> tuple[nn.Module, dict[str, Any]]:
    shapes = [(16, 16), (16, 16), (16, 8), (32, 8), (32, 4), (32, 4)]
    return three_levels(), {
        "sample": noise(4),
        "timestep": 301,
        "encoder_hidden_states": prompt(),
        "down_block_additional_residuals": tuple(noise(channels, size=size) for channels, size in shapes),
        "mid_block_additional_residual": noise(32, size=4),
    }


def masked() -> tuple[nn.Module, dict[str, Any]]:
    mask = torch.ones(BATCH, TOKENS)
    mask[0, 3:] = 0
    return conditional(), {
        "sample": noise(4),
        "timestep": 301,
        "encoder_hidden_states": prompt(),
        "encoder_attention_mask": mask,
    }


def one_resolution() -> tuple[nn.Module, dict[str, Any]]:
    """What the DDPM-style UNets have, in as few layers as that takes."""
    model = unconditional(**ONE_RESOLUTION, num_class_embeds=10, resnet_time_scale_shift="scale_shift")
    return model, {"sample": noise(3), "timestep": torch.tensor([7, 80]), "class_labels": torch.tensor([1, 9])}


def conditioned() -> tuple[nn.Module, dict[str, Any]]:
    """A UNet of one resolution that takes every kind of condition: a prompt, a mask of it, vectors and residuals."""
    model = conditional(
        **ONE_CROSS_ATTENTION,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    mask = torch.ones(BATCH, TOKENS)
    mask[0, 3:] = 0
    return model, {
        "sample": noise(4),
        "timestep": torch.tensor(301),
        "encoder_hidden_states": prompt(),
        "added_cond_kwargs": {"text_embeds": torch.randn(BATCH, 16), "time_ids": torch.rand(BATCH, 6) * 64},
        "down_block_additional_residuals": (noise(16), noise(16)),
        "mid_block_additional_residual": noise(16),
        "encoder_attention_mask": mask,
    }


class SumNet(nn.Module):
    """Three-chunk concat, transposed convolutions, BatchNorm, no timestep embedding modules of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.time = nn.Linear(8, 32)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.merge = nn.Conv2d(16 + 16 + 3, 16, 1)
        self.last = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W), t (B,) -> (B, 3, H, W)."""
        high = F.silu(self.first(x))
        low = F.relu(self.norm(self.down(high)))
        low = self.middle(low + self.time(_waves(t, 8))[:, :, None, None])
        up = self.up(low)
        merged = self.merge(torch.cat([up, high, x], dim=1))
        return self.last(torch.cat([merged, high], dim=1))


class EinsumNet(nn.Module):
    """GroupNorm and attention written with einsum and softmax, as in the DDPM codebase."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.time = nn.Linear(8, channels)
        self.last = nn.Conv2d(2 * channels, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor]:
        """x (B, 3, H, W), timesteps (B,) -> ((B, 3, H, W),)."""
        h = self.first(x)
        skip = h
        q, k, v = self.qkv(self.norm(h)).flatten(2).chunk(3, dim=1)
        scores = torch.einsum("bcq,bck->bqk", q, k) * q.shape[1] ** -0.5
        mixed = torch.einsum("bqk,bck->bcq", scores.softmax(dim=-1), v)
        h = h + self.project(mixed.reshape(h.shape)) + self.time(_waves(timesteps, 8))[:, :, None, None]
        return (self.last(torch.cat([h, skip], dim=1)),)


class MatmulNet(nn.Module):
    """Multi-head self-attention with a scaled q, matmul and bmm; returns a dict."""

    def __init__(self, channels: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.last = nn.Conv2d(2 * channels, 3, 3, padding=1)

    def forward(self, image: torch.Tensor, sigma: torch.Tensor) -> dict[str, torch.Tensor]:
        """image (B, 3, H, W), sigma (B,) -> {"noise": (B, 3, H, W), "features": (B, C, H, W)}."""
        first = self.first(image * torch.rsqrt(sigma**2 + 1)[:, None, None, None])
        batch, channels, height, width = first.shape
        tokens = self.norm(first.flatten(2).transpose(1, 2))
        q, k, v = self._split(self.q(tokens)), self._split(self.k(tokens)), self._split(self.v(tokens))
        q = q * (channels // self.heads) ** -0.5
        attended = torch.matmul(torch.softmax(q @ k.transpose(-1, -2), dim=-1), v)
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        shared = torch.bmm(torch.softmax(torch.bmm(tokens, tokens.transpose(1, 2)) / 4, dim=-1), tokens)
        features = shared.transpose(1, 2).reshape(batch, channels, height, width)
        return {"noise": self.last(torch.cat([features, first], dim=1)), "features": features}

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, channels = x.shape
        return x.view(batch, length, self.heads, channels // self.heads).transpose(1, 2)


def _waves(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoidal timestep features (B, dim)."""
    angles = t[:, None].float() * torch.exp(-torch.arange(dim // 2))[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def handwritten_sum() -> tuple[nn.Module, dict[str, Any]]:
    model = SumNet().eval()
    model.norm.running_mean.uniform_(-1, 1)  # type: ignore[operator, union-attr]
    return model, {"x": noise(3), "t": torch.tensor([4, 30])}


def handwritten_attention() -> tuple[nn.Module, dict[str, Any]]:
    return EinsumNet().eval(), {"x": noise(3), "timesteps": torch.tensor([4, 30])}


def handwritten_matmul() -> tuple[nn.Module, dict[str, Any]]:
    return MatmulNet().eval(), {"image": noise(3), "sigma": torch.tensor([0.4, 3.0])}


ARCHITECTURES: dict[str, Architecture] = {
    "ddpm_cifar": Architecture(ddpm_cifar, up_concats=6, attentions=7),
    "ddpm_class": Architecture(ddpm_class, up_concats=4, attentions=4),
    "ddpm_scale_shift": Architecture(ddpm_scale_shift, up_concats=4, attentions=4),
    "ddpm_resnet_downsample": Architecture(ddpm_resnet_downsample, up_concats=4, attentions=4),
    "sd1": Architecture(sd1, up_concats=6, attentions=14),
    "sd2": Architecture(sd2, up_concats=4, attentions=8),
    "sdxl": Architecture(sdxl, up_concats=4, attentions=16),
    "inpainting": Architecture(inpainting, up_concats=4, attentions=8),
    "sd_class": Architecture(sd_class, up_concats=4, attentions=8),
    "lcm": Architecture(lcm, up_concats=4, attentions=8),
    "controlnet": Architecture(controlnet, up_concats=6, attentions=14),
    "masked": Architecture(masked, up_concats=4, attentions=8),
    "one_resolution": Architecture(one_resolution, up_concats=2, attentions=1),
    "conditioned": Architecture(conditioned, up_concats=2, attentions=4),
    "handwritten_sum": Architecture(handwritten_sum, up_concats=2, attentions=0),
    "handwritten_attention": Architecture(handwritten_attention, up_concats=1, attentions=1),
    "handwritten_matmul": Architecture(handwritten_matmul, up_concats=1, attentions=2),
}

# Captured in two seconds or less, and all kinds of layers and of arguments among them.
QUICK = ("one_resolution", "conditioned", "handwritten_sum", "handwritten_attention", "handwritten_matmul")


def networks(*names: str) -> list[Any]:
    """Parameters of a test: these networks, those that are not `QUICK` in `make test-all` only."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


every_architecture = pytest.mark.parametrize("name", networks(*ARCHITECTURES))


@functools.cache
def captured(name: str) -> tuple[nn.Module, dict[str, Any], CapturedGraph]:
    """One network of the zoo, its example inputs and its graph; shared by every test, so not to be changed."""
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    return model, inputs, capture(model, inputs)


def prepared(name: str, config: QDiffConfig, **options: Any) -> PreparedUNet:
    """One network of the zoo, prepared anew; only its capture is shared."""
    model, inputs, graph = captured(name)
    with mock.patch("qdiff_fx.capture.capture", return_value=graph):
        return prepare_qdiff(model, config, inputs, **options)


def quantized(name: str, config: QDiffConfig = QDiffConfig()) -> QuantizedUNet:  # noqa: B008, it is frozen
    """One network of the zoo on `reference`, calibrated on its example and on other noise; not to be changed."""
    return _quantized(name, config)


@functools.cache  # which would tell a default that is given from one that is not
def _quantized(name: str, config: QDiffConfig) -> QuantizedUNet:
    network = prepared(name, config)
    inputs = captured(name)[1]
    torch.manual_seed(1)
    calibrate(network, [inputs, *(resized(inputs, BATCH) for _ in range(5))], progress=False)
    return convert_qdiff(network, backend="reference")


def resized(inputs: Any, batch: int, scale: int = 1, tokens: int = 0) -> Any:
    """Example inputs with another batch, wider images, more tokens; new random values for images and tokens."""
    if isinstance(inputs, Mapping):
        return {key: resized(value, batch, scale, tokens) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(resized(value, batch, scale, tokens) for value in inputs)
    if not isinstance(inputs, torch.Tensor) or inputs.dim() == 0:
        return inputs
    if inputs.dim() == 4:
        return torch.randn(batch, inputs.shape[1], inputs.shape[2], inputs.shape[3] * scale)
    if inputs.dim() == 3:
        return torch.randn(batch, inputs.shape[1] + tokens, inputs.shape[2])
    repeated = inputs[torch.arange(batch) % len(inputs)]
    return torch.cat([repeated, repeated[:, :tokens]], dim=1) if inputs.shape[-1] == TOKENS else repeated


def tensors_of(result: Any) -> list[torch.Tensor]:
    """Every tensor of a network's result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result.values() if isinstance(result, Mapping) else result
    return [tensor for part in parts for tensor in tensors_of(part)]
