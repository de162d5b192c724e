"""SHA-256 of tensors: of dtype, shape and bytes, never of names or of how a file is laid out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

SUFFIX = ".safetensors"


def tensor_digest(tensor: torch.Tensor) -> str:
    """Digest of one tensor's dtype, shape and elements."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def in_order(tensors: Iterable[torch.Tensor]) -> str:
    """Digest of a sequence of tensors."""
    return _joined(map(tensor_digest, tensors))


def folder_digests(folder: Path) -> dict[str, str]:
    """Digests of all tensors a saved folder stores: counted as often as they are stored, and each once.

    Raises:
        ValueError: the folder stores none.
    """
    digests = [
        tensor_digest(tensor) for file in sorted(folder.rglob(f"*{SUFFIX}")) for tensor in load_file(file).values()
    ]
    if not digests:
        raise ValueError(f"{folder} stores no tensors")
    return {"tensors stored": _joined(sorted(digests)), "tensors distinct": _joined(sorted(set(digests)))}


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
