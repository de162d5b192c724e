"""A digest of texts and tensors: what tells one set of weights, or of recorded data, from every other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(parts: Iterable[str | Tensor]) -> str:
    """SHA-256 of texts and of every bit of tensors, in order, as 64 hexadecimal digits. About a second per gigabyte."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
        else:
            total.update(f"{part.dtype}{list(part.shape)}".encode())
            total.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest_tensor(parts: Iterable[str | Tensor]) -> Tensor:
    """The same as uint8 [32], for where only tensors can be."""
    return torch.tensor(list(bytes.fromhex(digest(parts))), dtype=torch.uint8)
