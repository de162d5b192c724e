"""What the blocks of a program compute: one module per kind, written in the ways people write them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.fuzz.program import Block

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
CONV_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TOKEN_WIDTH = 12


@dataclass
class State:
    """What blocks may read beside the image: the embedding (N, E), tokens (N, L, 12), the input (N, C, …)."""

    emb: Tensor | None
    tokens: Tensor | None
    x: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


def tokens_of(h: Tensor) -> Tensor:
    """(N, C, …) → (N, L, C)."""
    return h.flatten(2).transpose(1, 2)


def image_of(y: Tensor, like: Tensor) -> Tensor:
    """(N, L, C) → the shape of `like`."""
    return y.transpose(1, 2).reshape(like.shape)


class Equalised(nn.Module):
    """A convolution whose weight and bias are scaled whenever it runs, or whose weight is standardised."""

    def __init__(self, conv: nn.Module, how: str):
        super().__init__()
        self.conv, self.how = conv, how

    def forward(self, h: Tensor) -> Tensor:
        conv: Any = self.conv
        weight, bias = conv.weight, conv.bias
        if self.how == "equalised":
            weight = weight * (1.5 / math.sqrt(weight[0].numel()) * math.sqrt(weight[0].numel()))
            bias = None if bias is None else bias * 2.0
        elif self.how == "standardised":
            dims = tuple(range(1, weight.dim()))
            weight = (weight - weight.mean(dims, keepdim=True)) / (weight.std(dims, keepdim=True) + 1e-3) * 0.2
        function = CONV_FUNCTIONS[weight.dim() - 2]
        return function(h, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.9 + 0.01


class Conv(nn.Module):
    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.residual, self.pad = block["residual"], []
        kernel, how, groups = block["kernel"], block["padding"], block["groups"]
        dilation = block["dilation"] if kernel > 1 else 1
        reach = dilation * (kernel // 2)
        options: dict[str, Any] = {"padding": reach, "bias": block["bias"], "dilation": dilation}
        options["groups"] = width if groups == "all" else groups
        if how == "same":
            options["padding"] = "same"
        elif how == "asymmetric":
            options["padding"] = 0
            self.pad = [reach, reach] * (rank - 1) + [2 * reach, 0]
        elif how != "zeros" and reach < 3 and not (how == "reflect" and rank == 3):
            options["padding_mode"] = how
        conv: Any = CONVS[rank](width, width, kernel, **options)
        weight = block["weight"]
        if weight == "weight_norm":
            conv = parametrizations.weight_norm(conv)
        elif weight == "spectral_norm":
            conv = parametrizations.spectral_norm(conv)
        elif weight == "parametrized":
            nn.utils.parametrize.register_parametrization(conv, "weight", Doubled())
        elif weight in ("equalised", "standardised", "functional") and isinstance(options["padding"], int):
            conv = conv if "padding_mode" in options else Equalised(conv, weight)
        self.conv = conv

    def forward(self, h: Tensor, state: State) -> Tensor:
        out = self.conv(F.pad(h, self.pad) if self.pad else h)
        return h + out if self.residual else out


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        variance = h.float().pow(2).mean(1, keepdim=True)
        normed = (h.float() * torch.rsqrt(variance + 1e-6)).to(h.dtype)
        return normed * self.weight.view(1, -1, *[1] * (h.dim() - 2))


class ChannelsLast(nn.Module):
    """A norm over the last dimension, of an image."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.movedim(1, -1)).movedim(-1, 1)


class Norm(nn.Module):
    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.kind, self.act = block["norm"], block["act"]
        makers = {
            "group": lambda: nn.GroupNorm(4 if width % 4 == 0 else 2, width),
            "layer": lambda: ChannelsLast(nn.LayerNorm(width)),
            "batch": lambda: BATCH_NORMS[rank](width),
            "instance": lambda: INSTANCE_NORMS[rank](width, affine=True),
            "rms": lambda: RMSNorm(width),
            "adaptive": lambda: nn.GroupNorm(2, width, affine=False),
            "none": nn.Identity,
        }
        self.norm = makers[self.kind]()
        if self.kind == "adaptive":
            self.scale_shift = nn.Linear(width, 2 * width)
        if self.kind == "batch":
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 1.5)
        if self.act == "gate":
            self.gate = CONVS[rank](width, 2 * width, 1)

    def forward(self, h: Tensor, state: State) -> Tensor:
        h = self.norm(h)
        if self.kind == "adaptive" and state.emb is not None:
            scale, shift = self.scale_shift(F.silu(state.emb))[(..., *[None] * (h.dim() - 2))].chunk(2, 1)
            h = h * (1 + scale) + shift
        return self.activated(h)

    def activated(self, h: Tensor) -> Tensor:
        if self.act == "gate":
            a, b = self.gate(h).chunk(2, dim=1)
            return torch.sigmoid(a) * b
        if self.act == "silu_inplace":
            return F.silu(h * 1.0, inplace=True)
        functions: dict[str, Any] = {
            "silu": F.silu,
            "relu": F.relu,
            "gelu": F.gelu,
            "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
            "mish": F.mish,
            "leaky": lambda y: F.leaky_relu(y, 0.2),
            "tanh": torch.tanh,
            "none": lambda y: y,
        }
        return functions[self.act](h)


class Shift(nn.Module):
    """How the time embedding is added."""

    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.how = block["how"]
        self.project = nn.Linear(width, 2 * width if self.how == "scale" else width)
        if self.how == "concat":
            self.join = CONVS[rank](2 * width, width, 1)
        if self.how == "outer":
            self.spread = nn.Parameter(torch.randn(1, width, *[1] * rank))

    def forward(self, h: Tensor, state: State) -> Tensor:
        if state.emb is None:
            return h
        emb, ones = self.project(F.silu(state.emb)), [1] * (h.dim() - 2)
        how = self.how
        if how == "view":
            return h + emb.view(h.shape[0], -1, *ones)
        if how == "reshape":
            return emb.reshape(emb.shape[0], emb.shape[1], *ones) + h
        if how == "unflatten":
            return h + emb.unflatten(-1, (-1, *ones))
        if how == "expand":
            return h + emb.view(*emb.shape, *ones).expand(*h.shape)
        if how == "unsqueeze":
            for _ in ones:
                emb = emb.unsqueeze(-1)
            return emb + h
        if how == "outer":  # both sides are spread
            return h + (emb[:, :1].view(-1, 1, *ones) + self.spread)
        if how == "scale":
            scale, shift = emb.view(h.shape[0], -1, *ones).chunk(2, dim=1)
            return torch.addcmul(shift, h, scale + 1)
        if how == "inplace":
            h = h * 1.0
            h += emb[(..., *[None] * len(ones))]
            return h
        if how == "concat":
            return self.join(torch.cat([h, emb.view(*emb.shape, *ones).expand(-1, -1, *h.shape[2:])], dim=1))
        return h + emb[(..., *[None] * len(ones))]


class Attention(nn.Module):
    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.form, self.heads, self.keys = block["form"], block["heads"], block["keys"]
        self.mask, self.how = block["mask"], block["project"]
        self.norm = nn.LayerNorm(width)
        if self.form == "module":
            self.attention = nn.MultiheadAttention(width, self.heads, batch_first=True)
            return
        head = width // self.heads
        source = TOKEN_WIDTH if self.keys == "cross" else width
        narrow = head if self.keys == "one_head" else width
        if self.how == "fused" and self.keys == "self":
            self.qkv = nn.Linear(width, 3 * width)
        else:
            maker: Any = (lambda i, o: nn.Conv1d(i, o, 1)) if self.how == "conv" else nn.Linear
            self.q, self.k, self.v = maker(width, width), maker(source, narrow), maker(source, narrow)
        if self.keys in ("learned", "chunk", "with_learned"):
            self.bank = nn.Parameter(torch.randn(1, 5, 2 * width if self.keys == "chunk" else width))
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, state: State) -> Tensor:
        y = self.norm(tokens_of(h))
        if self.form == "module":
            return h + image_of(self.attention(y, y, y, need_weights=False)[0], h)
        q, k, v = self.projected(y, state)
        q, k, v = (self.in_heads(each) for each in (q, k, v))
        out = self.mixed(q, k, v)
        return h + image_of(self.out(out.transpose(1, 2).flatten(2)), h)

    def projected(self, y: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        if self.how == "fused" and self.keys == "self":
            q, k, v = self.qkv(y).chunk(3, dim=-1)
            return q, k, v
        source = y
        if self.keys == "cross" and state.tokens is not None:
            source = state.tokens
        elif self.keys == "cross":
            source = F.pad(y, (0, TOKEN_WIDTH - y.shape[-1])) if y.shape[-1] < TOKEN_WIDTH else y[..., :TOKEN_WIDTH]
        elif self.keys == "learned":
            source = self.bank
        elif self.keys == "with_learned":
            source = torch.cat([y, self.bank.expand(y.shape[0], -1, -1)], dim=1)
        if self.keys == "chunk":
            k, v = self.bank.expand(y.shape[0], -1, -1).chunk(2, dim=-1)
            return self.applied(self.q, y), k, v
        return self.applied(self.q, y), self.applied(self.k, source), self.applied(self.v, source)

    def applied(self, layer: nn.Module, y: Tensor) -> Tensor:
        return layer(y.transpose(1, 2)).transpose(1, 2) if self.how == "conv" else layer(y)

    def in_heads(self, y: Tensor) -> Tensor:
        """(N, L, C) → (N, H or 1, L, D)."""
        if self.keys == "one_head" and y.shape[-1] * self.heads == self.out.in_features and self.heads > 1:
            return y[:, None]
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.mask_for(q, k)
        scale = 1 / math.sqrt(q.shape[-1])
        if self.form == "sdpa":
            if mask is None and self.mask == "causal":
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        added: Tensor | float = 0.0
        if mask is not None:
            added = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -1e4) if mask.dtype == torch.bool else mask
        if self.form == "einsum":
            weights = torch.einsum("bhld,bhsd->bhls", q, k.expand_as(q[..., :1, :1].expand(*q.shape[:2], *k.shape[2:])))
            weights = (weights * scale + added).softmax(-1)
            return torch.einsum("bhls,bhsd->bhld", weights, v.expand(*q.shape[:2], *v.shape[2:]))
        if self.form in ("bmm", "baddbmm"):
            k, v = (each.expand(*q.shape[:2], *each.shape[2:]) for each in (k, v))
            q3, k3, v3 = (each.reshape(-1, *each.shape[2:]) for each in (q, k, v))
            if self.form == "bmm" or isinstance(added, Tensor):
                scores = torch.bmm(q3, k3.transpose(1, 2)).view(*q.shape[:3], -1) * scale + added
                weights = scores.flatten(0, 1).softmax(dim=-1)
            else:
                empty = torch.empty(q3.shape[0], q3.shape[1], k3.shape[1], dtype=q.dtype)
                weights = torch.baddbmm(empty, q3, k3.transpose(1, 2), beta=0, alpha=scale).softmax(dim=-1)
            return torch.bmm(weights, v3).view(q.shape)
        scores = (q * math.sqrt(scale)) @ (k * math.sqrt(scale)).transpose(-2, -1) + added
        return scores.float().softmax(-1).to(q.dtype) @ v

    def mask_for(self, q: Tensor, k: Tensor) -> Tensor | None:
        if self.mask in ("none", "causal"):
            return None
        keep = torch.arange(k.shape[-2]) != 1
        if self.mask == "bool":
            return keep.expand(1, 1, q.shape[-2], -1)
        return ((~keep).to(q.dtype) * -5.0)[None, None, None, :]


class MLP(nn.Module):
    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.form = block["form"]
        self.norm = nn.LayerNorm(width) if block["norm"] else nn.Identity()
        wide = 2 * width
        self.up = nn.Linear(width, 2 * wide if self.form in ("geglu", "swiglu") else wide)
        self.down = nn.Linear(wide, width)

    def forward(self, h: Tensor, state: State) -> Tensor:
        y = self.norm(tokens_of(h))
        if self.form == "functional":
            up = F.relu(y @ self.up.weight.t() + self.up.bias)
            return h + image_of(torch.addmm(self.down.bias, up.flatten(0, 1), self.down.weight.t()).view(y.shape), h)
        up = self.up(y)
        if self.form == "geglu":
            values, gates = up.chunk(2, dim=-1)
            up = values * F.gelu(gates)
        elif self.form == "swiglu":
            gates, values = up.split(up.shape[-1] // 2, dim=-1)
            up = F.silu(gates) * values
        else:
            up = F.gelu(up, approximate="tanh" if self.form == "tanh_gelu" else "none")
        return h + image_of(self.down(up), h)


class Chain(nn.ModuleList):
    """Blocks one after the other."""

    def forward(self, h: Tensor, state: State) -> Tensor:
        for each in self:
            h = each(h, state)
        return h


class Level(nn.Module):
    """Half the resolution inside, and a shortcut around."""

    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.down, self.up, self.skip, self.rank = block["down"], block["up"], block["skip"], rank
        self.inner = chain(block.inner, width, rank)
        if self.down == "unshuffle":
            self.squeeze = CONVS[rank](width * 2**rank if rank == 2 else width, width, 1)
        elif self.down == "conv":
            self.squeeze = CONVS[rank](width, width, 3, stride=2, padding=1)
        if self.up == "transposed":
            self.widen = TRANSPOSED[rank](width, width, 4, stride=2, padding=1)
        elif self.up == "shuffle" and rank == 2:
            self.widen = nn.Conv2d(width, 4 * width, 1)
        else:
            self.widen = CONVS[rank](width, width, 3, padding=1)
        joined = 2 * width if self.skip in ("concat", "split_norm") else width
        self.normed = nn.GroupNorm(2, joined) if self.skip == "split_norm" else nn.Identity()
        self.join = CONVS[rank](joined, width, 1)

    def forward(self, h: Tensor, state: State) -> Tensor:
        y = self.upsampled(self.inner(self.downsampled(h), state), h)
        if self.skip in ("concat", "split_norm"):
            y = F.silu(self.normed(torch.cat([y, h], dim=1))) if self.skip == "split_norm" else torch.cat([y, h], 1)
        elif self.skip == "add":
            y = y + h
        return self.join(y)

    def downsampled(self, h: Tensor) -> Tensor:
        pools: dict[str, Any] = {
            "avg": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
            "max": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
        }
        if self.down in pools:
            return pools[self.down][self.rank - 1](h, 2)
        if self.down == "slice" or (self.down == "unshuffle" and self.rank != 2):
            h = h[(..., *[slice(None, None, 2)] * self.rank)]
            return h if self.down == "slice" else self.squeeze(h)
        return self.squeeze(F.pixel_unshuffle(h, 2) if self.down == "unshuffle" else h)

    def upsampled(self, y: Tensor, h: Tensor) -> Tensor:
        if self.up == "transposed":
            return self.widen(y)
        if self.up == "shuffle" and self.rank == 2:
            return F.pixel_shuffle(self.widen(y), 2)
        if self.up == "repeat":
            for dim in range(2, y.dim()):
                y = y.repeat_interleave(2, dim)
        elif self.up == "linear":
            y = F.interpolate(y, scale_factor=2, mode=("linear", "bilinear", "trilinear")[self.rank - 1])
        elif self.up == "size":
            y = F.interpolate(y, size=h.shape[2:], mode="nearest")
        else:
            y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.widen(y)


class Patches(nn.Module):
    """A transformer on patches of two, with adaptive norms, as DiT has it."""

    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.how, self.rank, self.width = block["unpatch"], rank, width
        self.patch = CONVS[rank](width, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(width, *[1] * rank)) if block["position"] else None
        self.inner = chain(block.inner, width, rank)
        self.modulate = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mix = nn.Linear(width, width)
        if self.how == "transposed":
            self.back: nn.Module = TRANSPOSED[rank](width, width, 2, stride=2)
        else:
            self.back = nn.Linear(width, width * 2**rank)

    def forward(self, h: Tensor, state: State) -> Tensor:
        y = self.patch(h)
        if self.position is not None:
            y = y + self.position
        y = self.inner(y, state)
        tokens = tokens_of(y)
        if state.emb is not None:
            scale, shift, gate = self.modulate(F.silu(state.emb)).unsqueeze(1).chunk(3, -1)
            tokens = tokens + gate * self.mix(self.norm(tokens) * (1 + scale) + shift)
        if self.how == "transposed":
            return self.back(image_of(tokens, y))
        parts = self.back(tokens).view(y.shape[0], *y.shape[2:], *[2] * self.rank, self.width)
        if self.how == "einsum" and self.rank == 2:
            return torch.einsum("nhwpqc->nchpwq", parts).reshape(h.shape)
        order = [0, 2 * self.rank + 1]
        for dim in range(self.rank):
            order += [1 + dim, 1 + self.rank + dim]
        return parts.permute(*order).reshape(h.shape)


class Twice(nn.Module):
    """A layer, or its result, that is used more than once."""

    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.how = block["how"]
        self.a, self.b = (CONVS[rank](width, width, 3, padding=1) for _ in range(2))
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor, state: State) -> Tensor:
        if self.how == "shared":
            return self.a(F.silu(self.a(h)))
        if self.how == "self_sum":
            k = self.linear(tokens_of(h))
            return image_of(k + k, h)
        if self.how == "two_sums":
            a, b = self.a(h), self.b(h)
            return (a + b) * 0.5 + (a - b) * 0.1 + h
        if self.how == "product":
            return self.a(h) * torch.sigmoid(self.b(h))
        return self.a(h) + self.b(F.silu(h)) + h


class Odd(nn.Module):
    """What people also do."""

    def __init__(self, block: Block, width: int, rank: int):
        super().__init__()
        self.what, self.rank = block["what"], rank
        self.conv = CONVS[rank](width, 2 * width if self.what == "glu" else width, 3, padding=1)
        self.other = CONVS[rank](width, width, 1)
        self.linear = nn.Linear(width, width)
        self.narrow = CONVS[rank](width // 2, width // 2, 1)
        self.rows = nn.Parameter(torch.randn(10, width))
        self.factor = nn.Parameter(torch.tensor(0.7))
        self.image = nn.Parameter(torch.randn(1, width, *[4] * rank))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, h: Tensor, state: State) -> Tensor:
        return getattr(self, self.what)(h, state)

    def constant_image(self, h: Tensor, state: State) -> Tensor:
        return h + F.interpolate(self.image, size=h.shape[2:])

    def constant_conv(self, h: Tensor, state: State) -> Tensor:
        made = self.conv(self.image)
        if state.emb is not None:
            made = made + self.linear(state.emb)[(..., *[None] * self.rank)]
        return h + F.interpolate(made, size=h.shape[2:])

    def computed_bias(self, h: Tensor, state: State) -> Tensor:
        bias = self.linear.bias if state.emb is None else self.linear(state.emb).mean(0)
        return CONV_FUNCTIONS[self.rank](h, self.conv.weight, bias, padding=1)

    def computed_weight(self, h: Tensor, state: State) -> Tensor:
        weight = self.other.weight if state.emb is None else self.other.weight * torch.sigmoid(state.emb.mean())
        return h + CONV_FUNCTIONS[self.rank](h, weight, self.other.bias)

    def summed_biases(self, h: Tensor, state: State) -> Tensor:
        function = CONV_FUNCTIONS[self.rank]
        first = function(h, self.conv.weight * 0.5, self.conv.bias * 2.0, padding=1)
        return first + function(F.relu(h), self.conv.weight, self.other.bias * 2.0, padding=1)

    def gain(self, h: Tensor, state: State) -> Tensor:
        return h * self.factor

    def inplace(self, h: Tensor, state: State) -> Tensor:
        y = self.conv(h)
        y.mul_(0.5).add_(h)
        return F.relu_(y)

    def branch_on_shape(self, h: Tensor, state: State) -> Tensor:
        if h.shape[1] > 8 and h.dim() == 4:
            return self.conv(h)
        return self.other(h) if h.shape[-1] >= 1 else h

    def halves(self, h: Tensor, state: State) -> Tensor:
        a, b = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]
        return torch.cat([self.narrow(a), b + self.narrow(b)], dim=1)

    def glu(self, h: Tensor, state: State) -> Tensor:
        return F.glu(self.conv(h), dim=1)

    def stack(self, h: Tensor, state: State) -> Tensor:
        return torch.stack([self.conv(h), self.other(h)], dim=0).mean(0)

    def pad_crop(self, h: Tensor, state: State) -> Tensor:
        padded = F.pad(h, (1, 1) * self.rank)
        return self.conv(padded)[(..., *[slice(1, -1)] * self.rank)]

    def dropout(self, h: Tensor, state: State) -> Tensor:
        return self.conv(F.dropout(h, 0.3, training=self.training))

    def buffer(self, h: Tensor, state: State) -> Tensor:
        self.count += 1
        return self.conv(h)

    def roll(self, h: Tensor, state: State) -> Tensor:
        return torch.roll(self.conv(torch.roll(h, 1, -1)), -1, dims=-1)

    def where(self, h: Tensor, state: State) -> Tensor:
        # Times h: what float16 between kernels makes of a number next to zero may not choose between two results.
        return h * torch.where(h > 0, self.conv(h), self.other(h))

    def clamp(self, h: Tensor, state: State) -> Tensor:
        return self.conv(h.clamp(-1, 1)) / math.sqrt(2)

    def token_mix(self, h: Tensor, state: State) -> Tensor:
        y = h.mean(dim=tuple(range(2, h.dim())))
        return h * torch.sigmoid(self.linear(y))[(..., *[None] * self.rank)]

    def matmul(self, h: Tensor, state: State) -> Tensor:
        return image_of(torch.matmul(tokens_of(h), self.linear.weight), h)

    def addmm(self, h: Tensor, state: State) -> Tensor:
        y = tokens_of(h)
        rows = y.reshape(-1, y.shape[-1])
        return image_of(torch.addmm(self.linear.bias, rows, self.linear.weight.t()).reshape(y.shape), h)

    def flat_norm(self, h: Tensor, state: State) -> Tensor:
        return self.conv(h / (h.norm(dim=1, keepdim=True) + 1e-3))

    def einsum_mix(self, h: Tensor, state: State) -> Tensor:
        return torch.einsum("nc...,dc->nd...", h, self.linear.weight)

    def mean_field(self, h: Tensor, state: State) -> Tensor:
        return self.conv(h - h.mean((2,) if self.rank == 1 else tuple(range(2, h.dim())), keepdim=True))

    def table(self, h: Tensor, state: State) -> Tensor:
        index = torch.arange(h.shape[-1]) % 10
        return h + self.rows[index].t().reshape(1, h.shape[1], *[1] * (self.rank - 1), h.shape[-1])

    def cast(self, h: Tensor, state: State) -> Tensor:
        return self.conv(h.float().tanh().to(h.dtype)).type_as(h)


KINDS: dict[str, type[nn.Module]] = {
    "conv": Conv,
    "norm": Norm,
    "shift": Shift,
    "attention": Attention,
    "mlp": MLP,
    "level": Level,
    "patches": Patches,
    "twice": Twice,
    "odd": Odd,
}


def chain(blocks: tuple[Block, ...], width: int, rank: int) -> Chain:
    return Chain([KINDS[each.kind](each, width, rank) for each in blocks])
