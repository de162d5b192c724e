"""Weights of a network that was built without any: read from safetensors, shard by shard, into memory once."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qdiff_fx.errors import ArtifactError

INDEX, SHARD = ".safetensors.index.json", ".safetensors"
MAPPED_BYTES = 64 << 20  # pages of a file that were read stay in memory as long as it is mapped
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file and its shape there."""

    file: Path
    shape: tuple[int, ...]


def with_weights(model: nn.Module, weights: str | os.PathLike[str]) -> nn.Module:
    """A copy of a network that holds the numbers of a checkpoint, in the types that the network's own tensors have.

    The memory it takes is that of its weights: a file is read piece by piece, and each tensor goes where it stays.

    Args:
        model: built on the meta device, or with numbers, which are not read; it is not changed.
        weights: a folder with safetensors in it, the index of a sharded checkpoint (`*.safetensors.index.json`), or one
            file.
    Raises:
        ArtifactError: a file is missing or damaged; a tensor is missing, of another shape, or none of the network's.
            The message names file and tensor, and nothing has been read by then but the files' headers.
    """
    stored = _stored_tensors(Path(weights))
    wanted = _state(model)
    _check_fit(wanted, stored, Path(weights))
    # Of tied tensors any name will do: they are one tensor in the copy too.
    filled = {id(wanted[name]): _empty_like(wanted[name]) for name in stored}
    made = dict(filled)  # `deepcopy` adds to what it is given
    copied = copy.deepcopy(model, made)
    _check_complete(copied, Path(weights))
    for file in sorted({each.file for each in stored.values()}):
        for name, tensor in _read(file, [name for name, each in stored.items() if each.file == file]):
            filled[id(wanted[name])].data.copy_(tensor)
    return copied


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, the network's own objects; tied ones under each of their names."""
    return {name: each for name, each in model.state_dict(keep_vars=True).items() if isinstance(each, Tensor)}


def _empty_like(tensor: Tensor) -> Tensor:
    memory = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(memory, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else memory


def _check_fit(wanted: Mapping[str, Tensor], stored: Mapping[str, Stored], weights: Path) -> None:
    """Raises ArtifactError unless the checkpoint has what the network has, in its shapes, and nothing else."""
    found = {id(wanted[name]) for name in stored if name in wanted}
    missing = [name for name, tensor in wanted.items() if id(tensor) not in found]
    if missing:
        raise ArtifactError(
            f"it lacks {_listed(missing)} of the network",
            where=str(weights),
            fix="Give the checkpoint that belongs to this configuration of the network, with all its files",
        )
    for name, each in stored.items():
        if name not in wanted:
            others = [other for other in stored if other not in wanted]
            raise ArtifactError(
                f"the network has no {_listed(others)}",
                where=str(each.file),
                fix="Give the checkpoint that belongs to this configuration of the network",
            )
        if each.shape != tuple(wanted[name].shape):
            raise ArtifactError(
                f"{name} has the shape {list(each.shape)}, the network's has {list(wanted[name].shape)}",
                where=str(each.file),
                fix="Build the network with the configuration that belongs to the checkpoint",
            )


def _check_complete(model: nn.Module, weights: Path) -> None:
    """Raises ArtifactError for what no checkpoint holds: buffers that a network computes when it is built."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    left = [name for name, tensor in tensors if tensor.is_meta]
    if left:
        raise ArtifactError(
            f"the network computes {_listed(left)} when it is built, which no checkpoint holds",
            where=str(weights),
            fix="Build it with parameters alone on the meta device, and buffers with their numbers",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# ---------------------------------------------------------------------------------------------- files and folders


def _stored_tensors(weights: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint by name; files are opened, and of each its header is read."""
    if weights.is_dir():
        return _stored_tensors(_only_file(weights))
    if not weights.exists():
        raise ArtifactError("there is no such file or folder", where=str(weights), fix="Give where the weights are")
    if not weights.name.endswith(INDEX):
        return _header(weights)
    places = _index(weights)
    files = {name: _header(weights.parent / name) for name in sorted(set(places.values()))}
    for name, file in places.items():
        if name not in files[file]:
            raise ArtifactError(
                f"it lacks {name}, which {weights.name} says it holds",
                where=str(weights.parent / file),
                fix="Download or copy the checkpoint again",
            )
    return {name: files[file][name] for name, file in places.items()}


def _only_file(folder: Path) -> Path:
    """The index in a folder, or without one its only file."""
    indices, shards = (sorted(folder.glob(f"*{ending}")) for ending in (INDEX, SHARD))
    candidates = indices or shards
    if len(candidates) == 1:
        return candidates[0]
    found = f"several ({_listed([each.name for each in candidates])})" if candidates else "none"
    raise ArtifactError(
        f"one checkpoint of safetensors is expected in it, there are {found}",
        where=str(folder),
        fix="Give the file, or the index of its shards",
    )


def _index(file: Path) -> dict[str, str]:
    """Of each tensor the name of its file, which lies beside the index."""
    try:
        places = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        beside = all(isinstance(each, str) and each == Path(each).name for each in places.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from error
    if not beside:
        raise ArtifactError("it names files that do not lie beside it", where=str(file), fix="Use another checkpoint")
    return dict(places)


def _header(file: Path) -> dict[str, Stored]:
    if not file.is_file():
        raise ArtifactError("the file is missing", where=str(file), fix="Download or copy the checkpoint again")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: Stored(file, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _read(file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a file, valid until the next one is asked for."""
    pending = list(reversed(names))
    try:
        while pending:
            with safe_open(file, framework="pt") as opened:
                read = 0
                while pending and read < MAPPED_BYTES:
                    tensor = opened.get_tensor(pending[-1])
                    read += tensor.nbytes
                    yield pending.pop(), tensor
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"it cannot be read ({type(error).__name__}: {error})",
        where=str(file),
        fix="Download or copy the checkpoint again",
    )
