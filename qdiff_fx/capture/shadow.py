"""A stand-in for the user's model to trace, so that tracing leaves the model itself alone."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qdiff_fx.ir.annotations import example_size

# diffusers blocks whose forward compares sizes with constants (batch >= 64, elements > 2**31) to work around
# bugs of old nearest-neighbour upsampling kernels. Both branches compute the same.
_SIZE_CHECKING = ("Upsample2D", "ResnetBlock2D", "ResnetBlockCondNorm2D")
# Attention a few heads at a time, in a loop over the batch, which would fix its size: to processors that do it at once.
_AT_ONCE = {"SlicedAttnProcessor": "AttnProcessor", "SlicedAttnAddedKVProcessor": "AttnAddedKVProcessor"}
_SIZE_READS = (torch.Tensor.shape.__get__, torch.Tensor.numel)  # type: ignore[attr-defined]  # a slot of C


def shadow(model: nn.Module) -> nn.Module:
    """A copy of the module tree: own module objects and containers, the same parameters and buffers.

    Whatever tracing does to it (hooks, attributes set in forward) does not reach `model`.
    """
    copies: dict[int, nn.Module] = {}
    for module in model.modules():
        copies[id(module)] = _copy_module(module)
    for module in copies.values():
        for name, child in module._modules.items():
            module._modules[name] = copies.get(id(child))
        _unslice(module)
        if codes := _size_checks(type(module)):
            module.__class__ = _size_blind(type(module), codes)  # type: ignore[arg-type]  # a class of the same layout
    return copies[id(model)]


def _copy_module(module: nn.Module) -> nn.Module:
    """One module without its tree; containers among its attributes are copied one level deep."""
    clone = object.__new__(type(module))
    clone.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict | list | set) else value
        for name, value in module.__dict__.items()
        if name != "_compiled_call_impl"
    }
    return clone


def _unslice(module: nn.Module) -> None:
    processor = getattr(module, "processor", None)
    whole = _AT_ONCE.get(type(processor).__name__)
    if whole and type(processor).__module__.startswith("diffusers."):
        module.processor = getattr(sys.modules[type(processor).__module__], whole)()


def _size_checks(cls: type) -> frozenset[CodeType]:
    """The code of the size-checking diffusers forwards among the base classes."""
    return frozenset(
        inspect.unwrap(base.__dict__["forward"]).__code__
        for base in cls.__mro__
        if base.__name__ in _SIZE_CHECKING and base.__module__.startswith("diffusers.") and "forward" in base.__dict__
    )


@functools.cache
def _size_blind(cls: type[nn.Module], codes: frozenset[CodeType]) -> type[nn.Module]:
    """`cls`, whose size checks see the sizes of the example instead of symbols.

    A check on a symbolic batch of 64 would bound the whole capture to batches below it.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _ExampleSizes(codes):
            return cls.forward(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


class _ExampleSizes(TorchFunctionMode):
    """Answers `.shape` and `.numel()` with plain numbers, to code that runs one of `codes` only."""

    def __init__(self, codes: frozenset[CodeType]):
        super().__init__()
        self.codes = codes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _SIZE_READS or sys._getframe(1).f_code not in self.codes:
            return result
        if isinstance(result, tuple):
            return torch.Size(map(example_size, result))
        return example_size(result)


class CallPath:
    """Follows which module is running: after an error, `deepest()` is the one that raised it."""

    def __init__(self, model: nn.Module):
        self._running: list[str] = []
        for path, module in model.named_modules():
            module.register_forward_pre_hook(self._enter(path))
            module.register_forward_hook(self._leave)

    def deepest(self) -> str:
        return self._running[-1] if self._running else ""

    def forget(self) -> None:
        self._running.clear()

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda module, args: self._running.append(path)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
