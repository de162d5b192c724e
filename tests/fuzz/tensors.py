"""What may be put in a tensor's place: other elements, other sizes, other layouts, other memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    """With some of its elements replaced, as far as its dtype has such numbers."""

    def fill(x: Tensor) -> Tensor:
        found = x.clone()
        if found.is_floating_point() and found.numel():
            found.view(-1)[:: max(1, found.numel() // 3)] = value
        return found

    return fill


def _extreme(largest: bool) -> Callable[[Tensor], Tensor]:
    def fill(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.full_like(x, torch.finfo(x.dtype).max if largest else torch.finfo(x.dtype).min)
        if x.dtype == torch.bool:
            return torch.full_like(x, largest)
        return torch.full_like(x, torch.iinfo(x.dtype).max if largest else torch.iinfo(x.dtype).min)

    return fill


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype)


def _one(x: Tensor) -> Tensor:
    """Its first element, or a zero where it has none."""
    return x.reshape(-1)[0] if x.numel() else torch.zeros((), dtype=x.dtype)


def _huge(x: Tensor) -> Tensor:
    """The same rank, 2^40 elements, one of them in memory."""
    return _one(x).expand([1 << (40 // max(1, x.dim()))] * max(1, x.dim()))


def _wide(x: Tensor) -> Tensor:
    """Its sizes but the last, which is 2^40."""
    return _one(x).expand((*x.shape[:-1], 1 << 40))


def _endless_nothing(x: Tensor) -> Tensor:
    return torch.empty((0, *[1 << 15] * max(0, x.dim() - 2), 1 << 31), dtype=x.dtype)


def _overlapping(x: Tensor) -> Tensor:
    """The same sizes over memory that elements share."""
    return x.clone().as_strided(x.shape, [1] * x.dim()) if x.numel() else x


def _strided(x: Tensor) -> Tensor:
    """Every second element of its last dimension."""
    return x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x


def _quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 10, torch.quint8)


def _sparse_rows(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.reshape(1, -1).to_sparse_csr()


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": _filled(float("nan")),
    "inf": _filled(float("inf")),
    "-inf": _filled(-float("inf")),
    "big": _filled(3e4),
    "tiny": _filled(1e-40),
    "most": _extreme(True),
    "least": _extreme(False),
    "zeros": torch.zeros_like,
    "f16": _as(torch.float16),
    "f32": _as(torch.float32),
    "f64": _as(torch.float64),
    "f8": _as(torch.float8_e4m3fn),
    "u8": _as(torch.uint8),
    "s8": _as(torch.int8),
    "s32": _as(torch.int32),
    "s64": _as(torch.int64),
    "bool": _as(torch.bool),
    "complex": _as(torch.complex64),
    "quantized": _quantized,
    "sparse": lambda x: x.to_sparse(),
    "sparse_rows": _sparse_rows,
    "mkldnn": lambda x: x.float().to_mkldnn() if x.numel() else x,
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "rows_of_none": lambda x: x[:0] if x.dim() else x,
    "none_in_rows": lambda x: x[..., :0] if x.dim() else x,
    "no_channels": lambda x: x[:, :0] if x.dim() > 1 else x,
    "longer": lambda x: torch.cat([x, x]) if x.dim() else x,
    "wider": lambda x: torch.cat([x, x], -1) if x.dim() else x,
    "shorter": lambda x: x[:-1] if x.dim() else x,
    "narrower": lambda x: x[..., :-1] if x.dim() else x,
    "more_dims": lambda x: x[None],
    "flat": lambda x: x.reshape(-1),
    "number": _one,
    "of_one": lambda x: _one(x).reshape([1] * x.dim()),
    "turned": lambda x: x.transpose(0, -1) if x.dim() else x,
    "reversed_memory": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1) if x.dim() else x,
    "strided": _strided,
    "offset": lambda x: torch.cat([x.reshape(-1)[:1], x.reshape(-1)])[1:].view(x.shape) if x.numel() else x,
    "repeated": lambda x: _one(x).expand(x.shape),
    "overlapping": _overlapping,
    "huge": _huge,
    "wide": _wide,
    "endless_nothing": _endless_nothing,
    "with_gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
}
