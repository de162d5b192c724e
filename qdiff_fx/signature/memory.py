"""Results belong to the caller: what lies in memory of the network, or of the call's own arguments, is copied."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class HeldMemory:
    """The memory of everything that modules hold: of their parameters and buffers, and of what they remember.

    A module that remembers results from call to call has a method ``holds(address) -> bool``.

    Args:
        modules: they hold the same tensors from here on.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)
        self._addresses: frozenset[int] | None = None
        self._remembering: list[Any] = []

    def __contains__(self, address: object) -> bool:
        if self._addresses is None:
            tensors = chain.from_iterable(chain(each.parameters(), each.buffers()) for each in self._modules)
            self._addresses = frozenset(address_of(tensor) for tensor in tensors)
            every = chain.from_iterable(each.modules() for each in self._modules)
            self._remembering = [module for module in every if hasattr(module, "holds")]
        return address in self._addresses or any(each.holds(address) for each in self._remembering)

    def __getstate__(self) -> Mapping[str, Any]:
        # A copy lies elsewhere.
        return self.__dict__ | {"_addresses": None, "_remembering": []}


def address_of(tensor: Tensor) -> int:
    """Where the memory begins that a tensor is a view of; 0 where it has none of its own, as when it is traced."""
    strided = tensor.layout == torch.strided and not tensor.is_meta
    plain = strided and type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    return tensor.untyped_storage().data_ptr() if plain else 0


def handed_out(outputs: Sequence[Tensor], inputs: Iterable[Tensor], held: Container[int]) -> tuple[Tensor, ...]:
    """The results of a call, free to be written to: those that are views of its inputs, or of what is held, copied."""
    given = {address_of(tensor) for tensor in inputs}

    def copied(tensor: Tensor) -> Tensor:
        address = address_of(tensor)
        return tensor.clone() if address and (address in given or address in held) else tensor

    return tuple(copied(tensor) for tensor in outputs)
