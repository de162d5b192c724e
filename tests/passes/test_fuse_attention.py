import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import examples
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.text import format_graph
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes

quick = examples(25)
aten = torch.ops.aten
BATCH, HEADS, L, S, D, E = 2, 3, 6, 5, 8, 4


def canonical(gm):
    report = run_passes(gm, [Canonicalize()])[0]
    text = format_graph(gm)
    assert run_passes(gm, [Canonicalize()])[0].changed == ()
    assert format_graph(gm) == text
    return report


def operands(*leading, dtype=torch.float32):
    """q (…, L, D), k (…, S, D), v (…, S, E)."""
    return tuple(torch.randn(*leading, *shape).to(dtype) for shape in ((L, D), (S, D), (S, E)))


def attentions(gm):
    return [node for node in gm.graph.nodes if node.target is aten.scaled_dot_product_attention.default]


def openai(q, k, v):
    """Channels first, both sides pre-scaled, softmax in float32, written with einsum."""
    scale = D**-0.25
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
    weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
    return torch.einsum("bts,bcs->bct", weight, v)


def latent_diffusion(q, k, v):
    """Channels first; v is multiplied from the left by the transposed probabilities."""
    weight = torch.bmm(q.permute(0, 2, 1), k) * D**-0.5
    return torch.bmm(v, F.softmax(weight, dim=2).permute(0, 2, 1))


def old_diffusers(q, k, v):
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype)
    scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=0.25)
    return torch.bmm(scores.softmax(dim=-1), v)


def heads_second_to_last(q, k, v):
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    weight = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weight, v)


def swapped(function):
    """Calls with the last two dimensions of every operand exchanged."""
    return lambda q, k, v: function(q.mT.contiguous(), k.mT.contiguous(), v.mT.contiguous())


SPELLINGS = {
    "matmul": (lambda q, k, v: (q @ k.mT * 0.3).softmax(-1) @ v, 4),
    "scale on the left": (lambda q, k, v: (0.3 * (q @ k.transpose(-2, -1))).softmax(-1) @ v, 4),
    "scale on q": (lambda q, k, v: ((q * 0.3) @ k.mT).softmax(-1) @ v, 4),
    "scale on transposed k": (lambda q, k, v: (q @ (k.mT / 3)).softmax(-1) @ v, 4),
    "no scale": (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, 4),
    "scale from a tensor": (
        lambda q, k, v: (q @ k.mT / torch.sqrt(torch.tensor(float(D)))).softmax(-1) @ v,
        4,
    ),
    "float softmax": (lambda q, k, v: F.softmax(q @ k.mT / 3, -1, dtype=torch.float32).to(v.dtype) @ v, 4),
    "dropout": (lambda q, k, v: F.dropout((q @ k.mT / 3).softmax(-1), 0.1, False) @ v, 4),
    "three dimensions": (lambda q, k, v: torch.bmm(torch.bmm(q, k.mT).softmax(2), v), 3),
    "openai": (swapped(openai), 3),
    "latent diffusion": (swapped(latent_diffusion), 3),
    "old diffusers": (old_diffusers, 3),
    "heads second to last": (heads_second_to_last, 4),
    "fused op": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), 4),
    "fused op with scale": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.2), 4),
}


@pytest.mark.parametrize(("function", "rank"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_spelling_is_one_op(function, rank, export, call, ops):
    inputs = operands(*(BATCH, HEADS)[: rank - 2])
    gm = export(function, *inputs, dynamic=True)
    assert canonical(gm).refused == ()
    assert ops(gm).count("scaled_dot_product_attention") == 1
    assert set(ops(gm)) <= {"scaled_dot_product_attention", "permute", "sym_size"}
    more = operands(*(BATCH + 3, HEADS)[: rank - 2])
    torch.testing.assert_close(call(gm, *more), function(*more), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("function", "rank"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_arguments_are_always_the_same(function, rank, export):
    inputs = operands(*(BATCH, HEADS)[: rank - 2])
    gm = export(function, *inputs)
    canonical(gm)
    (node,) = attentions(gm)
    q, k, v, mask, dropout, causal = node.args
    assert (mask, dropout, causal) == (None, 0.0, False)
    assert set(node.kwargs) == {"scale"}
    assert isinstance(node.kwargs["scale"], float)
    shapes = [tuple(value(x).shape[-2:]) for x in (q, k, v)]
    assert shapes == [(L, D), (S, D), (S, E)]


def test_golden_graph(export):
    gm = export(openai, torch.randn(2, 8, 6), torch.randn(2, 8, 5), torch.randn(2, 4, 5), dynamic=True)
    canonical(gm)
    assert format_graph(gm) == (
        "%0: f32[?,8,6] = input args_0\n"
        "%1: f32[?,8,5] = input args_1\n"
        "%2: f32[?,4,5] = input args_2\n"
        "%3: f32[?,5,4] = aten.permute.default(%2, [0, 2, 1])\n"
        "%4: f32[?,6,8] = aten.permute.default(%0, [0, 2, 1])\n"
        "%5: f32[?,5,8] = aten.permute.default(%1, [0, 2, 1])\n"
        "%6: f32[?,6,4] = aten.scaled_dot_product_attention.default(%4, %5, %3, None, 0.0, False, "
        "scale=0.353553)\n"
        "%7: f32[?,4,6] = aten.permute.default(%6, [0, 2, 1])\n"
        "return [%7]"
    )


@quick
@given(
    leading=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    scale=st.sampled_from([None, 0.1, 2.0]),
    where=st.sampled_from(["q", "k", "scores"]),
    mask=st.sampled_from([None, "matrix", "keys"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    upcast=st.booleans(),
)
def test_numbers(leading, sizes, scale, where, mask, dtype, upcast, export, call, ops):
    length, keys, dim, width = sizes
    shapes = [(length, dim), (keys, dim), (keys, width)]
    inputs = [torch.randn(*leading, *shape).to(dtype) for shape in shapes]
    if mask:
        inputs.append(torch.randn((length, keys) if mask == "matrix" else (1, keys)).to(dtype))

    def function(q, k, v, *masks):
        q, k = (q * scale if scale and where == "q" else q), (k * scale if scale and where == "k" else k)
        scores = q @ k.transpose(-1, -2)
        scores = scores * scale if scale and where == "scores" else scores
        scores = scores + masks[0] if masks else scores
        scores = scores.float() if upcast and dtype is torch.bfloat16 else scores
        return scores.softmax(dim=-1).to(v.dtype) @ v

    gm = export(function, *inputs)
    assert canonical(gm).refused == ()
    assert "scaled_dot_product_attention" in ops(gm)
    assert "softmax" not in ops(gm)
    tolerance = 5e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(call(gm, *inputs), function(*inputs), rtol=tolerance, atol=tolerance)


class TestMasks:
    ADDED = torch.randn(BATCH, 1, L, S)
    DROPPED = torch.zeros(BATCH, 1, 1, S, dtype=torch.bool)
    DROPPED[0, ..., 2:] = True

    CASES = {
        "added": (lambda s, m: s + m, ADDED),
        "added before the scale": (lambda s, m: (s + m) * 0.5, ADDED),
        "two added": (lambda s, m: (s + m) * 0.5 + m, ADDED),
        "added in front": (lambda s, m: m + s, ADDED),
        "added in another dtype": (lambda s, m: s.double() + m, ADDED.double()),
        "filled with -inf": (lambda s, m: s.masked_fill(m, float("-inf")), DROPPED),
        "filled with a large number": (lambda s, m: s.masked_fill(m, -1e9), DROPPED),
        "filled with the lowest number": (
            lambda s, m: torch.where(m.logical_not(), s, torch.finfo(s.dtype).min),
            DROPPED,
        ),
        "filled from a tensor": (lambda s, m: torch.where(~m, s, torch.tensor(-math.inf)), DROPPED),
    }

    @pytest.mark.parametrize(("apply", "mask"), CASES.values(), ids=CASES.keys())
    def test_masks_become_the_argument(self, apply, mask, export, call, ops):
        inputs = (*operands(BATCH, HEADS), mask)

        def function(q, k, v, mask):
            return apply(q @ k.mT * 0.3, mask).softmax(-1).to(v.dtype) @ v

        gm = export(function, *inputs, dynamic=True)
        assert canonical(gm).refused == ()
        (node,) = attentions(gm)
        assert value(node.args[3]).dtype in (torch.bool, torch.float32)
        torch.testing.assert_close(call(gm, *inputs), function(*inputs), rtol=1e-4, atol=1e-5)

    def test_a_causal_attention_gets_a_mask(self, export, call):
        inputs = operands(BATCH, HEADS)

        def function(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        gm = export(function, *inputs, dynamic=True)
        assert canonical(gm).refused == ()
        (node,) = attentions(gm)
        assert node.args[3].op == "get_attr"
        assert node.args[5] is False
        torch.testing.assert_close(call(gm, *inputs), function(*inputs))

    def test_shared_heads_are_repeated(self, export, call):
        q, k, v = torch.randn(2, 4, L, D), torch.randn(2, 2, S, D), torch.randn(2, 1, S, E)

        def function(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        gm = export(function, q, k, v)
        assert canonical(gm).refused == ()
        (node,) = attentions(gm)
        assert [value(x).shape[1] for x in node.args[:3]] == [4, 4, 4]
        torch.testing.assert_close(call(gm, q, k, v), function(q, k, v))


def test_rotated_queries_keep_their_narrow_dtype(export, call, ops):
    """Norms computed in float32 and cast down again belong to q and k, not to the attention."""
    q, k, v = operands(BATCH, HEADS, dtype=torch.bfloat16)

    def function(q, k, v):
        q, k = ((x.float() / (1 + x.float().abs().sum(-1, keepdim=True))).to(v.dtype) for x in (q, k))
        return (q @ k.mT).softmax(-1) @ v

    gm = export(function, q, k, v)
    assert canonical(gm).refused == ()
    (node,) = attentions(gm)
    assert {value(x).dtype for x in node.args[:3]} == {torch.bfloat16}
    torch.testing.assert_close(call(gm, q, k, v), function(q, k, v), rtol=5e-2, atol=5e-2)


def test_wide_arithmetic_on_narrow_operands_is_undone(export, call):
    q, k, v = operands(BATCH, HEADS, dtype=torch.bfloat16)

    def function(q, k, v):
        return (q.float() @ k.float().mT).softmax(-1) @ v.float()

    gm = export(function, q, k, v)
    assert canonical(gm).refused == ()
    (node,) = attentions(gm)
    assert node.args[0].op == "placeholder"
    got = call(gm, q, k, v)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, function(q, k, v), rtol=5e-2, atol=5e-2)


NEAR_MISSES = {
    "softmax over the queries": (
        lambda q, k, v: (q @ k.mT).softmax(2) @ v,
        "softmax is over dimension 2, not the last",
    ),
    "scores read twice": (
        lambda q, k, v: ((s := q @ k.mT).softmax(-1) @ v, s * 2),
        "the scores are read by more than one node (mul, softmax)",
    ),
    "probabilities returned": (
        lambda q, k, v: ((p := (q @ k.mT).softmax(-1)) @ v, p + 1),
        "the probabilities are read by more than one node (add, matmul_1)",
    ),
    "linear attention": (
        lambda q, k, v: k.softmax(-1).mT @ v,
        "the softmax does not act on q·kᵀ: the placeholder args_1 comes before it",
    ),
    "no values": (
        lambda q, k, v: (q @ k.mT).softmax(-1).sum(-1),
        "aten.sum.dim_IntList stands between the softmax and the product with v",
    ),
    "only probabilities": (
        lambda q, k, v: (q @ k.mT).softmax(-1),
        "the output stands between the softmax and the product with v",
    ),
    "capped scores": (
        lambda q, k, v: (q @ k.mT).tanh().softmax(-1) @ v,
        "the softmax does not act on q·kᵀ: aten.tanh.default comes before it",
    ),
    "a scale per head": (
        lambda q, k, v: (q @ k.mT * q[:, :, :1, :1].exp()).softmax(-1) @ v,
        "the scores are scaled by a tensor, not by a number",
    ),
    "shallow fill": (
        lambda q, k, v: (q @ k.mT).masked_fill(q[..., :1] > 0, -3.0).softmax(-1) @ v,
        "masked scores are set to -3, not to minus infinity",
    ),
    "sum over the queries": (
        lambda q, k, v: (q @ k.mT).softmax(-1).mT @ q,
        "the product with v sums over the queries, not over the keys",
    ),
    "stretched heads": (
        lambda q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v,
        "q, k and v have different leading dimensions: [(2, 3), (2, 1), (2, 3)]",
    ),
    "stretched by the mask": (
        lambda q, k, v: (q[:, :1] @ k[:, :1].mT + q[..., :S].sum(-2, keepdim=True)).softmax(-1) @ v,
        "the mask stretches the scores to a larger shape",
    ),
    "two products": (
        lambda q, k, v: (q @ k.mT + (q + 1) @ k.mT).softmax(-1) @ v,
        "the softmax does not act on one product plus a mask",
    ),
    "active dropout": (
        lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.5, True) @ v,
        "aten.dropout.default stands between the softmax and the product with v",
    ),
    "reshaped scores": (
        lambda q, k, v: (q @ k.mT).reshape(-1, L, S).softmax(-1) @ v[0, 0],
        "the softmax does not act on q·kᵀ: aten.reshape.default comes before it",
    ),
    "integer mask": (
        lambda q, k, v: (q @ k.mT + (q[..., :S] > 0).long()[:, :, :1]).softmax(-1) @ v,
        "the added mask holds torch.int64",
    ),
    "boolean and added mask": (
        lambda q, k, v: (q @ k.mT + q[..., :S]).masked_fill(q[..., :S] > 0, -math.inf).softmax(-1).nan_to_num() @ v,
        "aten.nan_to_num.default stands between the softmax and the product with v",
    ),
    "two kinds of mask": (
        lambda q, k, v: (q @ k.mT + q[..., :S]).masked_fill(q[..., :S] > 9, -math.inf).softmax(-1) @ v,
        "more than one mask, one of them boolean",
    ),
    "squared probabilities": (
        lambda q, k, v: torch.matmul(p := (q @ q.mT).softmax(-1), p),
        "the probabilities are multiplied by themselves",
    ),
    "half v": (
        lambda q, k, v: (q.double() @ k.double().mT).softmax(-1).to(v.dtype) @ v.half().float(),
        "q, k and v have different dtypes: torch.float16, torch.float32",
    ),
    "values without heads": (
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v[0, 0],
        "q, k and v have different numbers of dimensions",
    ),
    "divided by zero": (lambda q, k, v: (q @ k.mT / 0).softmax(-1) @ v, "the scale is nan"),
    "fused with dropout": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1),
        "the attention drops probabilities (dropout_p=0.1)",
    ),
}


@pytest.mark.parametrize(("function", "reason"), NEAR_MISSES.values(), ids=NEAR_MISSES.keys())
def test_near_misses_say_why(function, reason, export, call):
    inputs = operands(BATCH, HEADS)
    gm = export(function, *inputs)
    assert reason in [refusal.reason for refusal in canonical(gm).refused]
    if "dropout" not in reason and "nan" not in reason:
        want = function(*inputs)
        torch.testing.assert_close(call(gm, *inputs), want[0] if isinstance(want, tuple) else want)


def test_a_softmax_far_from_any_product_is_no_near_miss(export):
    gm = export(lambda x: x.softmax(-1) * 2, torch.randn(2, 3))
    assert canonical(gm).refused == ()


SYMBOLIC = {
    "causal": (
        2,
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "the attention is causal and its length is symbolic",
    ),
    "shared heads": (
        1,
        lambda x: F.scaled_dot_product_attention(torch.cat([x, x], 1), x, x, enable_gqa=True),
        "the heads are shared and their number is symbolic",
    ),
    "head size": (
        3,
        lambda x: F.scaled_dot_product_attention(x, x, x),
        "the scale depends on a symbolic head size",
    ),
    "as many heads": (1, lambda x: F.scaled_dot_product_attention(x, x, x, enable_gqa=True), None),
}


@pytest.mark.parametrize(("dim", "function", "reason"), SYMBOLIC.values(), ids=SYMBOLIC.keys())
def test_symbolic_sizes(dim, function, reason, export):
    gm = export(function, torch.randn(2, 4, 8, 16), symbolic={dim: torch.export.Dim("size", min=2, max=64)})
    assert [refusal.reason for refusal in canonical(gm).refused] == ([reason] if reason else [])


def test_multihead_attention_module(export, call):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    net = Net().eval()
    gm = export(net, torch.randn(2, 5, 8), dynamic=True)
    assert canonical(gm).refused == ()
    assert len(attentions(gm)) == 1
    x = torch.randn(4, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(call(gm, x), net(x))
