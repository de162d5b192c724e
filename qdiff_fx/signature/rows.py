"""A call taken apart by rows of its batch, and its results put together again.

What has a batch dimension is told by the signature, not by sizes: four numbers, one per channel, are no batch of four.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qdiff_fx.errors import InputError
from qdiff_fx.signature.call import CallSignature
from qdiff_fx.signature.inputs import Size, TensorInput
from qdiff_fx.signature.outputs import output_names


def take_rows(signature: CallSignature, tensors: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """The flat inputs of a call for some rows of its batch.

    Args:
        signature: of the network.
        tensors: as `CallSignature.bind` returns them.
        rows: int64 [R], indices into the batch.
    """
    sample = signature.sample.dims[0]
    each = [_rows_per_sample(spec, sample) for spec in signature.inputs]
    return [_some(tensor, rows, many) for many, tensor in zip(each, tensors, strict=True)]


def has_batch(signature: CallSignature) -> list[bool]:
    """Of each flat input: whether it holds a row, or several, for every sample of the batch."""
    sample = signature.sample.dims[0]
    return [_rows_per_sample(spec, sample) > 0 for spec in signature.inputs]


def _some(tensor: Tensor, rows: Tensor, many: int) -> Tensor:
    if many > 1:
        of_samples: Tensor = tensor.unflatten(0, (-1, many))
        return of_samples[rows].flatten(0, 1)
    return tensor[rows] if many else tensor


def _rows_per_sample(spec: TensorInput, sample: int | Size) -> int:
    """Where the batch was captured at one size, only the sizes are left to judge by."""
    return spec.rows_per_sample if isinstance(sample, Size) else int(bool(spec.dims) and spec.dims[0] == sample)


def join_rows(
    signature: CallSignature, parts: Sequence[Sequence[Tensor]], groups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The flat outputs of a whole batch from those of its parts.

    Args:
        signature: of the network.
        parts: the outputs of each part.
        groups: the rows of each part, together every row of the batch once.

    Raises:
        InputError: an output has no batch dimension and is not the same in all parts.
    """
    order = torch.cat(list(groups)).argsort()
    counts = [len(rows) for rows in groups]
    joined = []
    for index, outputs in enumerate(zip(*parts, strict=True)):
        if _output_has_batch(signature, index, outputs, counts):
            joined.append(torch.cat(outputs)[order])
        elif all(torch.equal(outputs[0], other) for other in outputs[1:]):
            joined.append(outputs[0])
        else:
            raise InputError(
                "it has no batch dimension, and is not the same for timesteps of different bins",
                where=f"output '{output_names(signature.output)[index]}'",
                fix="Call the network with timesteps of one bin at a time",
            )
    return tuple(joined)


def _output_has_batch(signature: CallSignature, index: int, outputs: Sequence[Tensor], counts: Sequence[int]) -> bool:
    """Signatures of the first release do not say: then by the sizes."""
    if signature.batched_outputs is not None:
        return signature.batched_outputs[index]
    return all(part.dim() > 0 and part.shape[0] == count for part, count in zip(outputs, counts, strict=True))
