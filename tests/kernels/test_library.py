"""The operators as torch sees them: schema, fake kernels, compiler."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.kernels import int_attention, int_attention_vnni, timestep_bin

OPS = pytest.mark.parametrize("op", [int_attention, int_attention_vnni], ids=["reference", "vnni"])


def arguments(tokens_outside: bool = True, mask: bool = False, dtype: torch.dtype = torch.float32) -> tuple:
    torch.manual_seed(0)
    shape = (2, 10, 3, 8) if tokens_outside else (2, 3, 10, 8)
    q = torch.randint(0, 256, shape, dtype=torch.uint8)
    k, v = (torch.randint(-128, 128, shape, dtype=torch.int8) for _ in range(2))
    if tokens_outside:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    keep = torch.rand(2, 1, 1, 10) > 0.3 if mask else None
    scale = torch.tensor(0.02)
    return (q, k, v, keep, scale, torch.tensor(128), scale, scale, 0.35, 8, dtype)


@OPS
@pytest.mark.parametrize("tokens_outside", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_opcheck(op, tokens_outside: bool, mask: bool) -> None:
    torch.library.opcheck(op, arguments(tokens_outside, mask))


@OPS
@pytest.mark.parametrize("tokens_outside", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_result_has_the_real_layout(op, tokens_outside: bool, dtype: torch.dtype) -> None:
    args = arguments(tokens_outside, dtype=dtype)
    real = op(*args)
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@OPS
def test_tokens_outside_comes_back_without_a_copy(op) -> None:
    assert op(*arguments(tokens_outside=True)).transpose(1, 2).is_contiguous()
    assert op(*arguments(tokens_outside=False)).is_contiguous()


@OPS
def test_meta_tensors(op) -> None:
    out = op(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments()))
    assert out.shape == (2, 3, 10, 8)


def attend_between_float_ops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    table = torch.tensor([0.01, 0.02, 0.03, 0.04])
    q_scale = table.index_select(0, timestep_bin(timestep, 4, 1000)).squeeze(0)
    heads = [x.unflatten(-1, (3, 8)).transpose(1, 2) for x in (q, k, v)]
    q_codes = (heads[0] / q_scale).round().add(128).clamp(0, 255).to(torch.uint8)
    k_codes, v_codes = ((x / 0.03).round().clamp(-128, 127).to(torch.int8) for x in heads[1:])
    scale, zero_point = torch.tensor(0.03), torch.tensor(128)
    out = int_attention_vnni(
        q_codes, k_codes, v_codes, None, q_scale, zero_point, scale, scale, 8**-0.5, 8, torch.float32
    )
    return out.transpose(1, 2).flatten(2) * 2


def test_compiled_equals_eager() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 10, 24) for _ in range(3))
    compiled = torch.compile(attend_between_float_ops, fullgraph=True)
    for timestep in (torch.tensor([600, 600]), torch.tensor([3, 3])):
        got, want = compiled(q, k, v, timestep), attend_between_float_ops(q, k, v, timestep)
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()
