"""One recorded call of a network: its tensors on the CPU, how they were nested, and which of their rows are samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.calibration.nested import Layout, flatten, layout_of, nested
from qdiff_fx.quant.digest import digest
from qdiff_fx.signature.roles import sample_argument, timestep_argument


@dataclass(frozen=True)
class Record:
    """One call. A tensor of R rows has one for each of the R samples; one of a single row, or 0-d, is for all of them.

    Tensors of any other number of rows belong to the call as it was: frames of all samples, positions of tokens.

    Attributes:
        tensors: by dotted path, the timestep as [R].
        layout: how they were nested, see `nested`.
    """

    tensors: Mapping[str, Tensor]
    layout: Layout

    @cached_property
    def count(self) -> int:
        """R, the rows of the sample."""
        name = sample_argument(self.tensors)
        return 1 if name is None or not self.tensors[name].dim() else self.tensors[name].shape[0]

    @cached_property
    def divides(self) -> bool:
        """Whether some of its samples make a call too."""
        return all(self._per_sample(each) or self._for_all(each) for each in self.tensors.values())

    @property
    def arguments(self) -> dict[str, Any]:
        """As the network got them."""
        arguments: dict[str, Any] = nested(self.layout, self.tensors)
        return arguments

    def timestep(self, known: str | None) -> float:
        """Of the first sample; of a network without any, one and the same for all."""
        name = known or timestep_argument(self.tensors)
        return 0.0 if name is None else float(self.tensors[name].flatten()[0])

    def kind(self, known: str | None) -> tuple[Any, ...] | None:
        """Equal for calls that may be joined: at one timestep, of tensors of the same kind. None: with no other."""
        name = known or timestep_argument(self.tensors)
        timesteps = torch.empty(1) if name is None else self.tensors[name]
        if not self.divides or timesteps.unique().numel() > 1:
            return None
        each = tuple(sorted((name, tensor.shape[1:], tensor.dtype) for name, tensor in self.tensors.items()))
        shared = {name: digest([tensor]) for name, tensor in self.tensors.items() if not self._per_sample(tensor)}
        return timesteps[0].item() if name else 0.0, each, repr(shared), repr(self.layout)

    def rows(self, places: Sequence[int] | Tensor) -> Record:
        """The call for these samples; itself where it does not divide, or they are all."""
        index = torch.as_tensor(places)
        if not self.divides or torch.equal(index, torch.arange(self.count)):
            return self
        return self._with(
            {name: tensor[index] if self._per_sample(tensor) else tensor for name, tensor in self.tensors.items()}
        )

    @staticmethod
    def joined(records: Sequence[Record]) -> Record:
        """One call of all samples of calls of one `kind`."""
        first = records[0]
        return first._with(
            {
                name: torch.cat([each.tensors[name] for each in records]) if first._per_sample(tensor) else tensor
                for name, tensor in first.tensors.items()
            }
        )

    def _with(self, tensors: Mapping[str, Tensor]) -> Record:
        return replace(self, tensors=tensors)

    def _per_sample(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and tensor.shape[0] == self.count

    @staticmethod
    def _for_all(tensor: Tensor) -> bool:
        return tensor.dim() == 0 or tensor.shape[0] == 1


def as_record(arguments: Mapping[str, Any], timestep: str | None = None) -> Record:
    """What a call's arguments are kept as.

    Args:
        arguments: of `forward`, by name; the timestep as a number, or one for all samples, or one for each.
        timestep: the argument that holds it, where that is known.

    Raises:
        CalibrationError: an argument is nothing that can be kept.
    """
    name = timestep or timestep_argument(arguments)
    if name is not None and isinstance(arguments.get(name), (int, float)):
        arguments = {**arguments, name: torch.tensor(arguments[name])}
    # A tensor that needs neither stays the same object, by which shared tensors are recognised.
    flat = {
        name: tensor.detach().cpu() if tensor.requires_grad or not tensor.is_cpu else tensor
        for name, tensor in flatten(arguments).items()
    }
    record = Record(flat, layout_of(arguments))
    if name in flat and flat[name].numel() == 1:
        flat[name] = flat[name].reshape(1).repeat(record.count)
    return record
