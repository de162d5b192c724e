"""What both networks have in common: pickled as they are saved, state taken whole, failures in words."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from qdiff_fx.errors import ComputeError, InputError, QDiffError
from qdiff_fx.signature import DropIn
from qdiff_fx.signature.state import differences

GRAPH_DIGEST, DECIDED_DIGEST = "graph_digest", "decided_digest"
"""In a state_dict, what its tensors belong to: numbers in the graph, a schedule, codes are no tensors of a module."""


class PickledAsSaved(DropIn):
    """Pickled in the form it is saved in; copied as any module is. Hooks of one's own stay behind in a pickle."""

    def __copy__(self) -> Self:
        return self._with_state(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = self._with_state({})
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _with_state(self, state: Mapping[str, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(state)
        return twin


class WithState(PickledAsSaved):
    """A network whose state is taken whole, or not at all.

    Its ``state_dict`` has digests beside the tensors. ``load_state_dict`` takes what observers saw, where the network
    has them; all else has to be what the network holds already.
    """

    _way_out: str

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """First an empty one of the type it is called in: pipelines ask for ``next(network.parameters()).dtype``."""
        first = nn.Parameter(torch.empty(0, dtype=self.dtype), requires_grad=False)
        yield f"{prefix}.called_in" if prefix else "called_in", first
        yield from super().named_parameters(prefix, recurse, remove_duplicate)

    def _digests(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _may_change(self, key: str) -> bool:
        return False

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {prefix + name: value for name, value in self._digests().items()}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *_: Any
    ) -> None:
        """Called before anything is loaded, by ``load_state_dict`` of the network or of a module it is a part of."""
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not given and not strict:
            return
        different = differences(self.state_dict(), given, self._may_change)
        if local_metadata.get("assign_to_params_buffers"):
            different = different or "assign=True would replace the tensors that run"
        if different:
            raise InputError(
                f"the state of another network cannot be loaded into this one: {different}",
                where=f"{type(self).__name__}.load_state_dict",
                fix=self._way_out,
            )


@contextmanager
def in_words(where: str) -> Iterator[None]:
    """Whatever torch raises in the middle of a call: an index outside a table, memory that is not there."""
    try:
        yield
    except QDiffError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ComputeError(f"the network failed ({cause})", where=where) from error
