"""The captured float network: a drop-in that captures again for calls its first capture does not cover."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from qdiff_fx.capture.tracing import CapturedGraph, capture
from qdiff_fx.errors import CaptureError
from qdiff_fx.signature.call import BoundCall
from qdiff_fx.signature.dropin import DropIn, answer
from qdiff_fx.signature.inputs import CaptureMismatchError

_KEPT = 4


class _Original:
    """Holds the network without making it a submodule, and without copying it when its holder is copied."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __deepcopy__(self, memo: object) -> _Original:
        return self


class CapturedNetwork(DropIn):
    """The float network as a graph.

    A call with other sizes or another set of conditioning tensors than `captured` covers is captured anew;
    the last few of these captures are kept. All share the original's weights.
    """

    def __init__(self, captured: CapturedGraph, original: nn.Module):
        super().__init__(captured.module, captured.signature)
        self._original = _Original(original)
        self._further: OrderedDict[int, CapturedGraph] = OrderedDict()

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Mapping[str, Any], *, dynamic: bool = True) -> CapturedNetwork:
        """Capture `model`; see `capture`."""
        return cls(capture(model, example_inputs, dynamic=dynamic), model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the original network's forward."""
        try:
            call = self.signature.bind(args, kwargs)
        except CaptureMismatchError as mismatch:
            try:
                captured, call = self._covering(args, kwargs)
            except CaptureError as error:  # not a call of the network at all, as far as it can be told
                raise mismatch from error
            return answer(captured.module, captured.signature, call)
        return answer(self.graph_module, self.signature, call)

    def _covering(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[CapturedGraph, BoundCall]:
        """A further capture for this call, made if there is none yet."""
        for key in reversed(self._further):
            try:
                call = self._further[key].signature.bind(args, kwargs)
            except CaptureMismatchError:
                continue
            self._further.move_to_end(key)
            return self._further[key], call
        captured = capture(self._original.model, self.signature.bind_arguments(args, kwargs))
        self._further[id(captured)] = captured
        if len(self._further) > _KEPT:
            self._further.popitem(last=False)
        return captured, captured.signature.bind(args, kwargs)
