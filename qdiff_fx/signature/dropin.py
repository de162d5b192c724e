"""The module that stands in for the network: called like it, running a graph."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from qdiff_fx.errors import QDiffError
from qdiff_fx.signature.attributes import namespaces
from qdiff_fx.signature.call import BoundCall, CallSignature
from qdiff_fx.signature.hooks import WithoutHooksInside
from qdiff_fx.signature.memory import HeldMemory, handed_out
from qdiff_fx.signature.missing import missing

_CHECK_OF_DIFFUSERS = "maybe_raise_or_warn"
_MODELS_OF_OTHERS = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "PreTrainedModel": "transformers.modeling_utils",
}


class Config(Mapping[str, Any]):
    """A network's configuration, read by attribute or by key, and never changed."""

    def __init__(self, values: Mapping[str, Any]):
        self.__dict__.update(_values=dict(values))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"the network's config has no '{name}'")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("the network's config cannot be changed")

    def __repr__(self) -> str:
        return f"Config({self._values!r})"


class DropIn(WithoutHooksInside):
    """A graph called like the network it was captured from.

    Takes the same arguments by position or by name, timesteps as number, 0-d or 1-d tensor, and returns the
    same structure (`return_dict` included). Calls that do not fit raise InputError. What it returns may be written to:
    no later call sees it.

    Args:
        graph_module: takes the flat tensors of `signature.inputs`, returns a tuple of tensors.
        signature: how the call maps to them.
    """

    def __init__(self, graph_module: fx.GraphModule | nn.Module, signature: CallSignature):
        super().__init__()
        self.graph_module = graph_module
        self.signature = signature
        self.config = Config(signature.config)
        for name, namespace in namespaces(signature.attributes).items():
            setattr(self, name, namespace)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and result as the original network's forward."""
        return answer(self.graph_module, self.signature, self.signature.bind(args, kwargs))

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call in the graph's placeholder order, checked; timesteps as (batch,)."""
        return self.signature.bind(args, kwargs).tensors

    @property  # type: ignore[misc]  # that nobody can set
    def __class__(self) -> type[Any]:
        """To the function of diffusers that checks what `from_pretrained` is given, a model of theirs too."""
        if sys._getframe(1).f_code.co_name != _CHECK_OF_DIFFUSERS:
            return type(self)
        ours: Any = type(self)
        there = {name: sys.modules.get(module) for name, module in _MODELS_OF_OTHERS.items()}
        return _also(ours, *(getattr(module, name) for name, module in there.items() if module is not None))

    def __getattr__(self, name: str) -> Any:
        """Only for what is not there: diffusers and people ask for what a network of theirs has."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("__"):
                raise
            raise missing(name, type(self).__name__) from error

    @property
    def dtype(self) -> torch.dtype:
        """That it is called in and answers in."""
        return self.signature.called_in or self.signature.dtype

    @property
    def device(self) -> torch.device:
        """Of the first parameter or buffer."""
        tensors = chain(self.parameters(), self.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def to(self, *args: Any, **kwargs: Any) -> DropIn:
        """Takes and returns another floating type from here on, and computes as it did; raises for another device."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != self.device.type:
            self._refuse(f"move to {device}", f"was captured on {self.device}")
        if dtype is not None:
            self.signature = self.signature.moved_to(dtype)
        return self

    def float(self) -> DropIn:
        return self.to(torch.float32)

    def double(self) -> DropIn:
        return self.to(torch.float64)

    def half(self) -> DropIn:
        return self.to(torch.float16)

    def bfloat16(self) -> DropIn:
        return self.to(torch.bfloat16)

    def cuda(self, device: int | torch.device | None = None) -> DropIn:
        return self.to("cuda")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DropIn:
        """What reaches it by way of a module it is a part of (`pipeline.half()`): as if it was called on itself."""
        for dtype, device in {(tensor.dtype, tensor.device) for tensor in chain(self.parameters(), self.buffers())}:
            changed = fn(torch.empty(0, dtype=dtype, device=device))
            if changed.dtype != dtype or changed.device.type != device.type:
                self.to(changed.device, changed.dtype)
        return self

    def share_memory(self) -> DropIn:
        for tensor in chain(self.parameters(), self.buffers()):
            tensor.share_memory_()
        return self

    def train(self, mode: bool = True) -> DropIn:
        """Only `train(False)`: dropout and batch statistics were folded away at capture."""
        if mode:
            self._refuse("be trained", "was captured in eval mode")
        super().train(False)
        return self

    def _refuse(self, action: str, reason: str) -> None:
        raise QDiffError(
            f"the graph cannot {action}: it {reason}",
            where=type(self).__name__,
            fix="Change the original network and capture it again",
        )


def as_captured() -> AbstractContextManager[object]:
    """The types that were captured, under autocast too."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def answer(graph_module: nn.Module, signature: CallSignature, call: BoundCall) -> Any:
    """What the network returns for a call of its graph."""
    with as_captured():
        outputs = handed_out(graph_module(*call.tensors), call.tensors, HeldMemory([graph_module]))
    return signature.pack(outputs, call.return_dict)


@functools.cache
def _also(*kinds: Any) -> type[Any]:
    """A class that is a subclass of all, by the name of the first, of which nothing is ever made."""
    return type(kinds[0].__name__, kinds, {})
