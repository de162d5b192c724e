"""Networks that are alike are captured once, where what comes after the capture is tested."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from qdiff_fx.capture import CapturedGraph, capture

_CAPTURED: dict[object, CapturedGraph] = {}


@contextmanager
def captured_once() -> Iterator[None]:
    """`prepare_qdiff` takes a network with the same weights, called alike, as an earlier one was captured."""

    def once(model: nn.Module, inputs: Mapping[str, Any]) -> CapturedGraph:
        network = type(model).__qualname__, repr(model), repr(getattr(model, "config", "")), model.training
        weights = tuple((name, _numbers(each)) for name, each in model.state_dict().items())
        key = (network, weights, _seen(inputs))
        if key not in _CAPTURED:
            _CAPTURED[key] = capture(model, inputs)
        return _CAPTURED[key]

    with mock.patch("qdiff_fx.capture.capture", once):
        yield


def _numbers(tensor: Tensor) -> object:
    numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(numbers).hexdigest()


def _seen(value: Any) -> object:
    """What a capture sees of an example input: of a tensor its size, and whether it has fractions."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), bool((value == value.round()).all())
    if isinstance(value, Mapping):
        return tuple((name, _seen(each)) for name, each in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_seen, value))
    return repr(value)
