"""What a network takes and returns beside plain tensors: named tuples, dataclasses, and what is no call at all."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdiff_fx.capture import CapturedGraph, capture
from qdiff_fx.errors import CaptureError, InputError
from qdiff_fx.signature import DropIn

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Conditioning:
    rows: Tensor
    scale: float = 1.0
    more: Pair | None = None


@dataclass
class Prediction:
    sample: Tensor
    variance: Tensor | None = None


class Net(nn.Module):
    def __init__(self, body: Callable[..., Any]):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 3, 1), body

    def forward(self, x: Tensor, t: Tensor, c: Any = None, flip: bool = False) -> Any:
        return self.body(-self.conv(x) if flip else self.conv(x), c)


X, T, ROWS = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 4.0]), torch.randn(2, 3)


def captured(body: Callable[..., Any], **more: Any) -> tuple[nn.Module, CapturedGraph]:
    model = Net(body).eval()
    return model, capture(model, {"x": X, "t": T, **more})


@torch.no_grad()
def test_named_tuples_and_dataclasses_are_taken_and_returned() -> None:
    def body(h: Tensor, c: Conditioning) -> Prediction:
        return Prediction(h * c.scale + c.rows[:, :, None, None], c.more.second[:, :2])

    given = Conditioning(ROWS, 2.0, Pair(ROWS + 1, ROWS + 2))
    model, graph = captured(body, c=given)
    assert [spec.name for spec in graph.signature.inputs] == ["x", "t", "c.rows", "c.more.0", "c.more.1"]
    expected, actual = model(X, T, given), DropIn(graph.module, graph.signature)(X, T, given)
    torch.testing.assert_close(actual.sample, expected.sample)
    torch.testing.assert_close(actual.variance, expected.variance)


def plain(h: Tensor, c: Tensor | None) -> Tensor:
    return h if c is None else h + c[:, :, None, None]


@pytest.fixture(scope="module")
def network() -> DropIn:
    graph = captured(plain, c=ROWS, flip=True)[1]
    return DropIn(graph.module, graph.signature)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": 3}, "'c': was a tensor when the network was captured, not 3"),
        ({"flip": torch.tensor(True)}, "'flip': was True when the network was captured, not a tensor"),
        ({"flip": False}, "'flip': was True when the network was captured and cannot become False"),
        ({"c": None}, "the call is missing c"),
        ({"x": X.to("meta")}, "'x': is on the meta device"),
        ({"x": X.to_sparse()}, "'x': is of layout torch.sparse_coo"),
        ({"t": T.to("meta")}, "'t': is on the meta device"),
        ({"t": T.to(torch.complex64)}, "a timestep cannot be a complex64 tensor"),
    ],
)
def test_calls_that_do_not_fit(network: DropIn, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(**{"x": X, "t": T, "c": ROWS, "flip": True, **changes})


def test_a_network_that_returns_no_tensor() -> None:
    with pytest.raises(CaptureError, match="returns no tensor"):
        captured(lambda h, c: None)


def test_an_empty_example() -> None:
    with pytest.raises(CaptureError, match="'x': is empty"):
        capture(Net(plain).eval(), {"x": X[:0], "t": T[:0]})


def test_arguments_without_names() -> None:
    class Starred(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return args[0]

    with pytest.raises(InputError, match="'x': the network has no such argument.*has to name its arguments"):
        capture(Starred().eval(), {"x": X})
