"""Networks as papers' own code spells them: no class of diffusers, its attentions and norms written by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.coverage.network import Built, network

BATCH, SIZE, WIDTH = 2, 16, 16


def waves(t: Tensor, dim: int = WIDTH) -> Tensor:
    """Sinusoidal features (B, dim) of t (B,)."""
    angles = t[:, None].float() * torch.exp(-torch.arange(dim // 2) * (math.log(10000) / (dim // 2)))[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def images(channels: int = 3) -> Tensor:
    return torch.randn(BATCH, channels, SIZE, SIZE)


def steps(value: float) -> Tensor:
    return torch.full((BATCH,), value)


class Time(nn.Sequential):
    def __init__(self, width: int = WIDTH):
        super().__init__(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


class FilmBlock(nn.Module):
    """norm, SiLU, conv twice; the embedding scales and shifts the second norm."""

    def __init__(self, inputs: int, outputs: int, embedding: int = WIDTH):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.norm, self.second = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.first(x)
        scale, shift = self.embed(emb)[..., None, None].chunk(2, dim=1)
        h = self.norm(h) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


class LegacyAttention(nn.Module):
    """Heads interleaved in one 1-D convolution, products by einsum, softmax in float32."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(4, width)
        self.qkv, self.out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        flat = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(flat))
        dim = c // self.heads
        q, k, v = qkv.reshape(b * self.heads, 3 * dim, -1).split(dim, dim=1)
        scale = 1 / math.sqrt(math.sqrt(dim))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        mixed = torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, flat.shape[-1])
        return (flat + self.out(mixed)).reshape(b, c, *spatial)


class GuidedDiffusion(nn.Module):
    def __init__(self, inputs: int = 3, classes: int = 0):
        super().__init__()
        self.time, self.label = Time(), nn.Embedding(classes, WIDTH) if classes else None
        self.first = nn.Conv2d(inputs, WIDTH, 3, padding=1)
        self.down, self.shrink = FilmBlock(WIDTH, WIDTH), nn.Conv2d(WIDTH, 32, 3, stride=2, padding=1)
        self.middle, self.attention = FilmBlock(32, 32), LegacyAttention(32)
        self.grow, self.up = nn.Conv2d(32, WIDTH, 3, padding=1), FilmBlock(2 * WIDTH, WIDTH)
        self.last = nn.Sequential(nn.GroupNorm(4, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 6, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.time(waves(timesteps))
        if self.label is not None and y is not None:
            emb = emb + self.label(y)
        skip = self.down(self.first(x), emb)
        h = self.attention(self.middle(self.shrink(skip), emb))
        h = self.grow(F.interpolate(h, scale_factor=2, mode="nearest"))
        return self.last(self.up(torch.cat([h, skip], dim=1), emb))


@network("guided diffusion", "unconditional", timestep="timesteps")
def guided() -> Built:
    return GuidedDiffusion(), {"x": images(), "timesteps": steps(301)}


@network("guided diffusion", "class-conditional", timestep="timesteps")
def guided_classes() -> Built:
    return GuidedDiffusion(classes=10), {"x": images(), "timesteps": steps(301), "y": torch.tensor([1, 9])}


@network("SR3", "the small image beside the noise", timestep="timesteps")
def sr3() -> Built:
    return GuidedDiffusion(6), {"x": images(6), "timesteps": steps(301)}


class Preconditioned(nn.Module):
    """c_skip x + c_out F(c_in x, ln(sigma) / 4), with data of deviation 0.5."""

    def __init__(self):
        super().__init__()
        self.model = GuidedDiffusion()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        total = s**2 + 0.25
        out = self.model(x / total.sqrt(), sigma.log() / 4)[:, :3]
        return x * 0.25 / total + out * s * 0.5 / total.sqrt()


SIGMAS = (40.0, 12.0, 3.0, 0.6, 0.05)


@network("EDM", "preconditioned, called with sigma", timestep="sigma", timesteps=SIGMAS)
def edm() -> Built:
    return Preconditioned(), {"x": images() * 3, "sigma": steps(3.0)}


NOISES = (0.92, 0.6, 0.27, -0.1, -0.75)


@network("EDM", "the network alone, called with ln(sigma) / 4", timestep="c_noise", timesteps=NOISES)
def edm_inner() -> Built:
    class Inner(GuidedDiffusion):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, c_noise)

    return Inner(), {"x": images(), "c_noise": steps(0.27)}


class RmsNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        var = self.weight.var(dim=(1, 2, 3), unbiased=False, keepdim=True)
        return F.conv2d(x, (self.weight - mean) * (var + 1e-5).rsqrt(), self.bias, self.stride, self.padding)


class LinearAttention(nn.Module):
    def __init__(self, width: int, heads: int = 2, dim: int = 8):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.norm, self.to_qkv = RmsNorm(width), nn.Conv2d(width, 3 * heads * dim, 1, bias=False)
        self.memory = nn.Parameter(torch.randn(2, heads, dim, 4))
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim, width, 1), RmsNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        q, k, v = (each.reshape(b, self.heads, self.dim, h * w) for each in qkv)
        mk, mv = (each.unsqueeze(0).expand(b, -1, -1, -1) for each in self.memory)
        k, v = torch.cat([mk, k], dim=-1), torch.cat([mv, v], dim=-1)
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
        out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(dim=-2) * self.dim**-0.5)
        return x + self.to_out(out.reshape(b, -1, h, w))


class PytorchDdpm(nn.Module):
    """Standardized weights, RMS norms over channels, linear attention with memory, space-to-depth."""

    def __init__(self, conditioned_on_itself: bool = False):
        super().__init__()
        self.twice = conditioned_on_itself
        self.init_conv, self.time = nn.Conv2d(6 if self.twice else 3, WIDTH, 7, padding=3), Time()
        self.conv, self.norm = StandardizedConv(WIDTH, WIDTH, 3, padding=1), RmsNorm(WIDTH)
        self.film, self.attention = nn.Linear(WIDTH, 2 * WIDTH), LinearAttention(WIDTH)
        self.down = nn.Conv2d(4 * WIDTH, WIDTH, 1)
        self.middle, self.up = StandardizedConv(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(2 * WIDTH, 3, 1)

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        if self.twice:
            x = torch.cat([torch.zeros_like(x) if x_self_cond is None else x_self_cond, x], dim=1)
        first = self.init_conv(x)
        scale, shift = self.film(F.silu(self.time(waves(time))))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm(self.conv(first)) * (scale + 1) + shift)
        h = self.attention(h)
        h = self.middle(self.down(F.pixel_unshuffle(h, 2)))
        h = self.up(F.interpolate(F.silu(h), scale_factor=2))
        return self.last(torch.cat([h, first], dim=1))


@network("denoising-diffusion in PyTorch", "standardized weights, linear attention", timestep="time")
def pytorch_ddpm() -> Built:
    return PytorchDdpm(), {"x": images(), "time": steps(301)}


@network("bit diffusion", "conditioned on its own last prediction", timestep="time")
def self_conditioned() -> Built:
    return PytorchDdpm(True), {"x": images(), "time": steps(301), "x_self_cond": images()}


class DiffWave(nn.Module):
    """Dilated convolutions over a waveform, tanh gates, sums of skips; conditioned on a mel spectrogram."""

    def __init__(self, layers: int = 3):
        super().__init__()
        self.input, self.time = nn.Conv1d(1, WIDTH, 1), Time()
        self.dilated = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=2**i, dilation=2**i) for i in range(layers))
        self.step = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.condition = nn.ModuleList(nn.Conv1d(8, 2 * WIDTH, 1) for _ in range(layers))
        self.out = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 1) for _ in range(layers))
        self.skip, self.last = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, 1, 1)

    def forward(self, audio: Tensor, spectrogram: Tensor, step: Tensor) -> Tensor:
        x, emb, total = F.relu(self.input(audio)), self.time(waves(step)), 0.0
        for dilated, project, condition, out in zip(self.dilated, self.step, self.condition, self.out, strict=True):
            y = dilated(x + project(emb).unsqueeze(-1)) + condition(spectrogram)
            gate, value = y.chunk(2, dim=1)
            residual, skip = out(torch.sigmoid(gate) * torch.tanh(value)).chunk(2, dim=1)
            x, total = (x + residual) / math.sqrt(2.0), total + skip
        return self.last(F.relu(self.skip(total / math.sqrt(len(self.dilated)))))


@network("DiffWave", "vocoder", timestep="step", timesteps=(49, 37, 25, 12, 1))
def diffwave() -> Built:
    spectrogram = torch.randn(BATCH, 8, 64)
    return DiffWave(), {"audio": torch.randn(BATCH, 1, 64), "spectrogram": spectrogram, "step": steps(25)}


class DiffusionPolicy(nn.Module):
    """A 1-D UNet over actions, each block scaled and shifted by timestep and observation."""

    def __init__(self, actions: int = 4, observation: int = 10):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Mish(), nn.Linear(WIDTH, WIDTH))
        self.first, self.norm = nn.Conv1d(actions, WIDTH, 5, padding=2), nn.GroupNorm(4, WIDTH)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(WIDTH + observation, 2 * WIDTH))
        self.down, self.middle = nn.Conv1d(WIDTH, WIDTH, 3, 2, 1), nn.Conv1d(WIDTH, WIDTH, 5, padding=2)
        self.up, self.last = nn.ConvTranspose1d(WIDTH, WIDTH, 4, 2, 1), nn.Conv1d(2 * WIDTH, actions, 1)

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        x = sample.moveaxis(-1, -2)
        cond = torch.cat([self.time(waves(timestep)), global_cond], dim=-1)
        scale, bias = self.film(cond).unsqueeze(-1).chunk(2, dim=1)
        first = F.mish(self.norm(self.first(x))) * scale + bias
        h = self.up(F.mish(self.middle(self.down(first))))
        return self.last(torch.cat([h, first], dim=1)).moveaxis(-1, -2)


@network("Diffusion Policy", "1-D UNet over actions", timesteps=(99, 75, 50, 25, 1))
def diffusion_policy() -> Built:
    model, condition = DiffusionPolicy(), torch.randn(BATCH, 10)
    return model, {"sample": torch.randn(BATCH, 16, 4), "timestep": steps(50), "global_cond": condition}


class TabDdpm(nn.Module):
    def __init__(self, features: int = 12):
        super().__init__()
        self.time, self.project, self.label = Time(32), nn.Linear(features, 32), nn.Embedding(3, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, features))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        return self.mlp(self.project(x) + self.time(waves(timesteps, 32)) + F.silu(self.label(y)))


@network("TabDDPM", "a multilayer perceptron over rows of a table", timestep="timesteps")
def tab_ddpm() -> Built:
    return TabDdpm(), {"x": torch.randn(BATCH, 12), "timesteps": steps(301), "y": torch.tensor([0, 2])}


class Volumes(nn.Module):
    """Convolutions over volumes, attention over all voxels at the lower resolution."""

    def __init__(self):
        super().__init__()
        self.first, self.time = nn.Conv3d(1, WIDTH, 3, padding=1), Time()
        self.down, self.norm = nn.Conv3d(WIDTH, WIDTH, 3, stride=2, padding=1), nn.GroupNorm(4, WIDTH)
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj, self.up = nn.Linear(WIDTH, WIDTH), nn.Conv3d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Conv3d(2 * WIDTH, 1, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        first = self.first(x)
        h = self.down(F.silu(first)) + self.time(waves(timesteps))[:, :, None, None, None]
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            *(each(tokens)[:, None] for each in (self.to_q, self.to_k, self.to_v))
        )
        h = h + self.proj(attended[:, 0]).transpose(1, 2).reshape(h.shape)
        h = self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(torch.cat([h, first], dim=1))


@network("MONAI-like", "3-D UNet over volumes", timestep="timesteps")
def volumes() -> Built:
    return Volumes(), {"x": torch.randn(BATCH, 1, 8, 8, 8), "timesteps": steps(301)}


class SpaceTime(nn.Module):
    """Factored: convolutions of 1×3×3, attention over pixels, then over frames with relative biases."""

    def __init__(self, frames: int = 4):
        super().__init__()
        self.first, self.time = nn.Conv3d(3, WIDTH, (1, 3, 3), padding=(0, 1, 1)), Time()
        self.spatial, self.temporal = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.bias = nn.Parameter(torch.randn(2, frames, frames) / 10)
        self.out, self.last = nn.Linear(WIDTH, WIDTH), nn.Conv3d(WIDTH, 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(x) + self.time(waves(time))[:, :, None, None, None]
        b, c, f, height, width = h.shape
        pixels = h.permute(0, 2, 3, 4, 1).reshape(b * f, height * width, c)
        q, k, v = self.spatial(pixels).chunk(3, dim=-1)
        pixels = pixels + F.scaled_dot_product_attention(q, k, v)
        frames = pixels.reshape(b, f, height * width, c).transpose(1, 2).reshape(b * height * width, f, 2, c // 2)
        qkv = self.temporal(frames.flatten(2)).reshape(b * height * width, f, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-1, -2) * (c // 2) ** -0.5 + self.bias
        mixed = (scores.softmax(dim=-1) @ qkv[2]).transpose(1, 2).flatten(2)
        h = self.out(mixed).reshape(b, height, width, f, c).permute(0, 4, 3, 1, 2) + h
        return self.last(h)


@network("video diffusion", "factored space and time", timestep="time")
def space_time() -> Built:
    return SpaceTime(), {"x": torch.randn(BATCH, 3, 4, 8, 8), "time": steps(301)}


class Dit(nn.Module):
    """Patches, a fixed table of positions, adaptive norms by modulate(), a perceptron of tanh-GELU."""

    def __init__(self, width: int = 32, heads: int = 4, patch: int = 2):
        super().__init__()
        self.heads, self.patch, self.time = heads, patch, Time(width)
        self.label, self.embed = nn.Embedding(11, width), nn.Conv2d(4, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (SIZE // patch) ** 2, width) / 10, requires_grad=False)
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.final = nn.Linear(width, patch * patch * 8)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        c = self.time(waves(t, h.shape[-1])) + self.label(y)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN(c).chunk(6, dim=1)
        h = h + gate1.unsqueeze(1) * self._attend(self.norm1(h) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1))
        h = h + gate2.unsqueeze(1) * self.mlp(self.norm2(h) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1))
        side = SIZE // self.patch
        patches = self.final(h).reshape(x.shape[0], side, side, self.patch, self.patch, 8)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(x.shape[0], 8, SIZE, SIZE)

    def _attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))


@network("DiT", "as the paper spells it", timestep="t")
def paper_dit() -> Built:
    return Dit(), {"x": images(4), "t": steps(301), "y": torch.tensor([1, 10])}


class UVit(nn.Module):
    """All tokens alike: time, condition and patches in one sequence, long skips concatenated into a linear layer."""

    def __init__(self, width: int = 32, heads: int = 2):
        super().__init__()
        self.embed, self.context, self.time = nn.Conv2d(3, width, 2, stride=2), nn.Linear(12, width), Time(width)
        self.position = nn.Parameter(torch.randn(1, 1 + 3 + 64, width) / 10)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(3)
        )
        self.skip, self.norm, self.last = nn.Linear(2 * width, width), nn.LayerNorm(width), nn.Linear(width, 12)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = [self.time(waves(timesteps, 32))[:, None], self.context(context), patches]
        h = torch.cat(tokens, dim=1) + self.position
        first = self.blocks[0](h)
        h = self.blocks[1](first)
        h = self.blocks[2](self.skip(torch.cat([h, first], dim=-1)))
        patches = self.last(self.norm(h))[:, 4:].transpose(1, 2).reshape(x.shape[0], 12, 8, 8)
        return self.conv(F.pixel_shuffle(patches, 2))


@network("U-ViT", "long skips between transformer blocks", timestep="timesteps")
def u_vit() -> Built:
    return UVit(), {"x": images(), "timesteps": steps(301), "context": torch.randn(BATCH, 3, 12)}


class Consistency(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = GuidedDiffusion()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.model(x, 1000 * 0.25 * torch.log(t + 1e-44))[:, :3]
        shifted = (t - 0.002) ** 2 + 0.25
        skip, scale = 0.25 / shifted, 0.5 * (t - 0.002) / (t**2 + 0.25).sqrt()
        return skip[:, None, None, None] * x + scale[:, None, None, None] * out


@network("consistency models", "skip scaled by the timestep", timestep="t", timesteps=(80.0, 24.0, 5.8, 0.66, 0.05))
def consistency() -> Built:
    return Consistency(), {"x": images(), "t": steps(5.8)}


class RectifiedFlow(GuidedDiffusion):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, 1000 * t)[:, :3]


@network("rectified flow", "time from 0 to 1", timestep="t", timesteps=(0.02, 0.25, 0.5, 0.75, 0.98))
def rectified_flow() -> Built:
    return RectifiedFlow(), {"x": images(), "t": steps(0.5)}


class Points(nn.Module):
    """Shared perceptrons over points, the set's maximum, concatenated back."""

    def __init__(self):
        super().__init__()
        self.first, self.time = nn.Conv1d(3, 32, 1), Time(32)
        self.second, self.last = nn.Conv1d(32, 64, 1), nn.Conv1d(64 + 32, 3, 1)

    def forward(self, points: Tensor, t: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(points) + self.time(waves(t, 32))[:, :, None], 0.1)
        whole = self.second(h).amax(dim=2, keepdim=True)
        return self.last(torch.cat([whole.expand(-1, -1, h.shape[2]), h], dim=1))


@network("point clouds", "PointNet-like", timestep="t")
def points() -> Built:
    return Points(), {"points": torch.randn(BATCH, 3, 40), "t": steps(301)}
