"""The value of an elementwise call without making the call."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qdiff_fx.ir.edit import elementwise

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "merged": lambda x: x.flatten(0, 1),
    "cut": lambda x: x[:, 1:],
    "expanded": lambda x: x[:1].expand(4, 3, 5, 7),
}


def open_value(layout):
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        return LAYOUTS[layout](mode.from_tensor(torch.zeros(4, 3, 5, 7), static_shapes=False))


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "permuted", "merged"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_it_is_what_the_call_would_return(layout, dtype):
    value = open_value(layout)
    found = elementwise(value, dtype)
    expected = (value + 1).to(dtype)
    assert (found.dtype, found.shape, found.stride()) == (dtype, expected.shape, expected.stride())
    assert (found is value) == (dtype == torch.float32)


@pytest.mark.parametrize("layout", ["cut", "expanded"])
def test_it_says_nothing_of_layouts_with_holes(layout):
    for dtype in (torch.uint8, torch.float32):
        assert elementwise(open_value(layout), dtype) is None


def test_nothing_is_assumed_about_sizes():
    value = open_value("channels last")
    elementwise(value, torch.uint8)
    assert not value.fake_mode.shape_env.guards
