import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import examples
from qdiff_fx.ir.annotations import set_value, value
from qdiff_fx.ir.edit import insert_call
from qdiff_fx.ir.properties import properties
from qdiff_fx.ir.text import format_graph
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes

quick = examples(25)
aten = torch.ops.aten


def canonical(gm):
    """Canonicalize in place, check that a second run finds nothing to do, and return the first report."""
    report = run_passes(gm, [Canonicalize()])[0]
    text = format_graph(gm)
    again = run_passes(gm, [Canonicalize()])[0]
    assert again.changed == ()
    assert again.refused == report.refused
    assert format_graph(gm) == text
    return report


def reasons(report):
    return [refusal.reason for refusal in report.refused]


IDENTITIES = {
    "dropout in eval mode": lambda x: F.dropout(x, 0.5, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0, training=True),
    "alias": lambda x: aten.alias.default(x),
    "detach": lambda x: x.detach(),
    "cast to the same dtype": lambda x: x.to(torch.float32),
    "cast like itself": lambda x: x.type_as(x),
    "_to_copy": lambda x: aten._to_copy.default(x, dtype=torch.float32),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.mT.contiguous().mT,
    "expand to the same shape": lambda x: x.expand(x.shape),
    "view to the same shape": lambda x: x.view(x.shape),
    "whole slice": lambda x: x[:, :],
    "squeeze of a wide dimension": lambda x: x.squeeze(1),
    "divide by one": lambda x: x / 1.0,
    "multiply by one": lambda x: 1.0 * x,
    "two transposes": lambda x: x.transpose(1, 2).transpose(1, 2),
    "pad by nothing": lambda x: F.pad(x, (0, 0)),
    "concat of one": lambda x: torch.cat([x], dim=1),
    "metadata assertion": lambda x: x.to(torch.float32).relu(),
}


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES.keys())
def test_what_changes_nothing_goes(identity, export, call, ops):
    x = torch.randn(2, 3, 4)
    gm = export(lambda x: identity(x + 1) * 2, x, dynamic=True)
    report = canonical(gm)
    assert [name for name in ops(gm) if name != "relu"] == ["add", "mul"]
    assert report.refused == ()
    torch.testing.assert_close(call(gm, x), identity(x + 1) * 2)


KEPT = {
    "cast to another dtype": (lambda x: x.to(torch.float64), "to"),
    "view to another shape": (lambda x: x.view(-1, 4), "reshape"),
    "expand to another shape": (lambda x: x[:, :1].expand(-1, 5, -1), "expand"),
    "half a slice": (lambda x: x[:, :2], "slice"),
    "divide by two": (lambda x: x / 2, "div"),
    "integer division": (lambda x: x // 1, "floor_divide"),
    "transpose to the same shape": (lambda x: x[:, :, :3].transpose(1, 2), "permute"),
    "pad": (lambda x: F.pad(x, (1, -1)), "pad"),
}


@pytest.mark.parametrize(("function", "op"), KEPT.values(), ids=KEPT.keys())
def test_what_changes_something_stays(function, op, export, call, ops):
    x = torch.randn(2, 3, 4)
    gm = export(lambda x: function(x + 1), x)
    canonical(gm)
    assert op in ops(gm)
    torch.testing.assert_close(call(gm, x), function(x + 1))


def test_a_switched_on_dropout_is_named(export, ops):
    gm = export(nn.Dropout(0.25), torch.randn(2, 3), train=True)
    assert reasons(canonical(gm)) == ["dropout is in training mode with p=0.25: capture the network in eval mode"]
    assert ops(gm) == ["dropout"]


def test_an_output_stays_a_copy_of_the_input(export, call):
    x = torch.randn(2, 3)
    gm = export(lambda x: x.clone(), x)
    assert reasons(canonical(gm)) == ["the network would return one of its own inputs or parameters instead of a copy"]
    assert call(gm, x) is not x


def test_a_copy_for_whoever_reads_strides_stays(export, call):
    x = torch.randn(2, 3, 4)

    def function(x):
        return (x.transpose(1, 2) + 0).contiguous().as_strided((2, 12), (12, 1)) + 1

    gm = export(function, x)
    assert "a copy may not go while as_strided reads strides" in reasons(canonical(gm))
    torch.testing.assert_close(call(gm, x), function(x))


def test_views_of_transposed_memory_need_no_copy(export, call, ops):
    x = torch.randn(2, 3, 4, 5)

    def function(x):
        return x.transpose(1, 3).contiguous().view(x.shape[0], -1).relu().unflatten(1, (5, 12))

    gm = export(function, x, dynamic=True)
    canonical(gm)
    assert [name for name in ops(gm) if not name.startswith("sym_size")] == [
        "permute",
        "reshape",
        "relu",
        "reshape",
    ]
    more = torch.randn(7, 3, 4, 5)
    torch.testing.assert_close(call(gm, more), function(more))


class TestInPlace:
    def test_writes_become_new_values(self, export, call, ops):
        def function(x):
            y = x * 2
            y.add_(x)
            z = y.clone()
            z.mul_(3).relu_()
            return y + z

        x = torch.randn(2, 3)
        gm = export(function, x)
        assert canonical(gm).refused == ()
        assert ops(gm) == ["mul", "add", "mul", "relu", "add"]
        torch.testing.assert_close(call(gm, x), function(x))

    REFUSED = {
        "input": (lambda x: x.add_(1) * 2, "it writes into args_0, which outlives the call"),
        "view": (
            lambda x: _zero_first(x + 1) * 2,
            "it writes into memory that mul reads through add",
        ),
    }

    @pytest.mark.parametrize(("function", "reason"), REFUSED.values(), ids=REFUSED.keys())
    def test_writes_others_can_see_stay(self, function, reason, export, call):
        x = torch.randn(2, 3)
        gm = export(function, x)
        report = canonical(gm)
        assert reason in reasons(report)
        torch.testing.assert_close(call(gm, x.clone()), function(x.clone()))

    def test_a_write_that_would_promote_stays(self, export, call, ops):
        def function(x):
            return (x * 2).half().add_(x) * 2

        x = torch.randn(2, 3)
        gm = export(function, x)
        assert reasons(canonical(gm)) == ["the result would become torch.float32 of shape (2, 3)"]
        assert "add_" in ops(gm)
        torch.testing.assert_close(call(gm, x), function(x))

    def test_a_copy_stays_while_something_is_written(self, export, call, ops):
        def function(x):
            y = x + 1
            kept = y.clone()
            y[:, :1].mul_(5)
            return y + kept

        x = torch.randn(2, 3)
        gm = export(function, x)
        assert "a copy may not go while mul_ writes in place" in reasons(canonical(gm))
        torch.testing.assert_close(call(gm, x), function(x))


def _zero_first(y):
    y[:, :1].mul_(0)
    return y


TRANSPOSES = {
    "transpose": lambda x: x.transpose(-1, 1),
    "swapaxes": lambda x: x.swapaxes(0, 2),
    "mT": lambda x: x.mT,
    "T": lambda x: x[0, 0].t(),
    "movedim": lambda x: x.movedim(1, -1),
    "movedim of two": lambda x: x.movedim((0, 1), (3, 0)),
    "permute": lambda x: x.permute(-1, 0, 2, 1),
    "several": lambda x: x.permute(3, 1, 0, 2).transpose(1, 2).mT.movedim(0, 2),
}


@pytest.mark.parametrize("function", TRANSPOSES.values(), ids=TRANSPOSES.keys())
def test_every_transposition_is_one_permute(function, export, call, ops):
    x = torch.randn(2, 3, 4, 5)
    gm = export(lambda x: function(x + 0.5), x)
    canonical(gm)
    assert ops(gm).count("permute") == 1
    assert set(ops(gm)) <= {"add", "select", "permute"}
    torch.testing.assert_close(call(gm, x), function(x + 0.5))


EINSUMS = ["bct,bcs->bts", "bts,bcs->bct", "bihd,bjhd->bhij", "bhij,bjhd->bihd", "abcd,de->abce", "ij,jk->ki"]


@pytest.mark.parametrize("equation", [*EINSUMS, "oc,bchw->bohw"])
def test_einsum_is_a_matrix_product(equation, export, call, ops):
    sizes = dict(zip("abcdehijkostw", range(2, 15)))
    tensors = [torch.randn([sizes[letter] for letter in part]) for part in equation.split("->")[0].split(",")]
    gm = export(lambda a, b: torch.einsum(equation, a, b), *tensors)
    assert canonical(gm).refused == ()
    assert set(ops(gm)) <= {"permute", "matmul"}
    torch.testing.assert_close(call(gm, *tensors), torch.einsum(equation, *tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shapes", "reason"),
    [
        ("bc,bc->b", [(2, 3), (2, 3)], "is not a batch of matrix products"),
        ("bc,bc->bc", [(2, 3), (2, 3)], "does not sum over one letter that both operands have"),
        ("bij,bjk->ik", [(2, 3, 4), (2, 4, 5)], "does not sum over one letter that both operands have"),
        ("...c,cd->...d", [(2, 3), (3, 4)], "leaves letters implicit"),
        ("ii,ij->ij", [(3, 3), (3, 4)], "repeats a letter"),
        ("bij->bji", [(2, 3, 4)], "does not have two operands"),
        ("bij,bjk->bik", [(1, 3, 4), (2, 4, 5)], "the sizes of 'b' differ: 1 and 2"),
    ],
)
def test_other_einsums_stay(equation, shapes, reason, export, ops):
    tensors = [torch.randn(shape) for shape in shapes]
    gm = export(lambda *xs: torch.einsum(equation, *xs), *tensors)
    (found,) = reasons(canonical(gm))
    assert found.endswith(reason)
    assert ops(gm) == ["einsum"]


@pytest.mark.parametrize("beta", [0, 1, 0.5])
@pytest.mark.parametrize("alpha", [1, 0.3])
def test_baddbmm_is_a_matmul(alpha, beta, export, call, ops):
    inputs = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)

    def function(c, a, b):
        return torch.baddbmm(c, a, b, alpha=alpha, beta=beta)

    gm = export(function, *inputs)
    canonical(gm)
    assert "baddbmm" not in ops(gm)
    assert "matmul" in ops(gm)
    torch.testing.assert_close(call(gm, *inputs), function(*inputs))


@pytest.mark.parametrize("function", [aten._softmax.default, aten.softmax.int, aten.special_softmax.default])
def test_softmax_has_one_name(function, export, call):
    x = torch.randn(2, 3, 4)
    gm = export(lambda x: function(x, -2, *([False] if function is aten._softmax.default else [])), x)
    canonical(gm)
    assert format_graph(gm).splitlines()[1] == "%1: f32[2,3,4] = aten.softmax.int(%0, 1)"
    torch.testing.assert_close(call(gm, x), x.softmax(1))


def test_batch_norm_has_one_name(export, call, ops):
    network = nn.BatchNorm2d(3).eval()
    network.running_mean.uniform_(-1, 1)

    def native(x):
        terms = network.weight, network.bias, network.running_mean, network.running_var, 0.1, network.eps
        return aten._native_batch_norm_legit_no_training.default(x, *terms)[0]

    x = torch.randn(2, 3, 4, 4)
    gm = export(native, x)
    canonical(gm)
    assert ops(gm) == ["batch_norm"]
    torch.testing.assert_close(call(gm, x), network(x))


class TestConvolutions:
    @quick
    @given(
        rank=st.integers(1, 3),
        kernel=st.integers(1, 4),
        dilation=st.integers(1, 2),
        padding=st.sampled_from(["same", "valid"]),
        data=st.data(),
    )
    def test_named_padding_becomes_numbers(self, rank, kernel, dilation, padding, data, export, call, ops):
        groups = data.draw(st.sampled_from([1, 2]))
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        network = conv(2, 4, kernel, padding=padding, dilation=dilation, groups=groups)
        x = torch.randn(2, 2, *[8] * rank)
        gm = export(network, x)
        assert canonical(gm).refused == ()
        odd = padding == "same" and dilation * (kernel - 1) % 2
        assert ops(gm) == [*(["pad"] if odd else []), f"conv{rank}d"]
        torch.testing.assert_close(call(gm, x), network(x), rtol=1e-4, atol=1e-5)

    @quick
    @given(
        rank=st.integers(1, 3),
        transposed=st.booleans(),
        stride=st.integers(1, 2),
        groups=st.sampled_from([1, 2]),
        bias=st.booleans(),
    )
    def test_the_general_op_becomes_the_named_one(self, rank, transposed, stride, groups, bias, export, call, ops):
        # (out, in / groups, …) when forward, (in, out / groups, …) when transposed.
        weight = torch.randn(4, 4 // groups, *[3] * rank)
        offset = torch.randn(4) if bias else None
        x = torch.randn(2, 4, *[5] * rank)
        ones, zeros = [1] * rank, [0] * rank

        def function(x):
            return aten.convolution.default(x, weight, offset, [stride], ones, ones, transposed, zeros, groups)

        gm = export(function, x, dynamic=True)
        canonical(gm)
        assert ops(gm) == [f"conv_transpose{rank}d" if transposed else f"conv{rank}d"]
        node = next(n for n in gm.graph.nodes if n.op == "call_function")
        assert [stride] * rank in [list(arg) for arg in node.args if isinstance(arg, list | tuple)]
        torch.testing.assert_close(call(gm, x), function(x), rtol=1e-4, atol=1e-5)

    def test_every_argument_is_written_out(self, export):
        gm = export(nn.Conv2d(3, 4, 3, bias=False), torch.randn(2, 3, 5, 5), dynamic=True)
        canonical(gm)
        assert format_graph(gm) == (
            "%0: f32[?,3,5,5] = input input\n"
            "%1: f32[?,4,3,3] = aten.conv2d.default(%0, weight, None, [1, 1], [0, 0], [1, 1], 1)\n"
            "return [%1]"
        )

    def test_a_normalised_weight_is_computed_once(self, export, call, ops):
        network = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        x = torch.randn(2, 3, 5, 5)
        gm = export(network, x)
        canonical(gm)
        assert ops(gm) == ["conv2d"]
        torch.testing.assert_close(call(gm, x), network(x))

    def test_integer_codes_are_not_folded(self, export, ops):
        gm = export(nn.Conv2d(3, 4, 1), torch.randn(2, 3, 5, 5))
        conv = next(n for n in gm.graph.nodes if n.op == "call_function")
        gm.register_buffer("codes", torch.ones(4, 3, 1, 1, dtype=torch.int8))
        with gm.graph.inserting_before(conv):
            codes = gm.graph.get_attr("codes")
        set_value(codes, value(conv.args[1]).to(torch.int8))
        dequantize = torch.ops.qdiff_test_codes.dequantize.default
        conv.args = (conv.args[0], insert_call(gm.graph, conv, dequantize, (codes,)), *conv.args[2:])
        canonical(gm)
        assert ops(gm) == ["qdiff_test_codes", "conv2d"]


@torch.library.custom_op("qdiff_test_codes::dequantize", mutates_args=())
def dequantize(codes: torch.Tensor) -> torch.Tensor:
    return codes.float() / 4


@dequantize.register_fake
def _(codes):
    return codes.new_empty(codes.shape, dtype=torch.float32)


class TestLinear:
    WEIGHT, BIAS = torch.randn(3, 5), torch.randn(5)

    @pytest.mark.parametrize("rank", [2, 3, 4])
    def test_a_product_with_a_constant(self, rank, export, call, ops):
        x = torch.randn(*range(2, rank + 1), 3)
        gm = export(lambda x: x @ self.WEIGHT + self.BIAS, x, dynamic=True)
        canonical(gm)
        assert ops(gm) == ["linear"]
        torch.testing.assert_close(call(gm, x), x @ self.WEIGHT + self.BIAS)

    def test_a_transposed_parameter_is_used_as_it_is(self, export, call):
        layer = nn.Linear(3, 5)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return torch.addmm(self.layer.bias, x, self.layer.weight.t())

        x = torch.randn(2, 3)
        gm = export(Net(), x)
        canonical(gm)
        assert format_graph(gm) == (
            "%0: f32[2,3] = input x\n%1: f32[2,5] = aten.linear.default(%0, layer.weight, layer.bias)\nreturn [%1]"
        )
        torch.testing.assert_close(call(gm, x), layer(x))

    def test_a_weight_read_twice_is_transposed_once(self, export):
        gm = export(lambda x: x @ self.WEIGHT + (x + 1) @ self.WEIGHT, torch.randn(2, 3))
        canonical(gm)
        assert len(dict(gm.named_buffers())) == 1

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (lambda x, w: torch.addmm(w[0], x, w), "the weight is not a constant"),
            (
                lambda x, w: torch.addmm(TestLinear.BIAS, x, TestLinear.WEIGHT, alpha=0.5),
                "alpha is 0.5, not 1",
            ),
            (
                lambda x, w: torch.addmm(TestLinear.BIAS, x, TestLinear.WEIGHT, beta=2),
                "beta is 2, not 1",
            ),
            (
                lambda x, w: torch.addmm(w[0], x, TestLinear.WEIGHT),
                "the bias is not a parameter of one dimension",
            ),
            (
                lambda x, w: torch.addmm(TestLinear.BIAS[:1].clone(), x, TestLinear.WEIGHT),
                "the bias is not a parameter of one dimension",
            ),
            (
                lambda x, w: torch.matmul(x, TestLinear.WEIGHT[None].clone()),
                "the constant factor has 3 dimensions, a linear weight has 2",
            ),
        ],
    )
    def test_near_misses(self, function, reason, export, call):
        x, weight = torch.randn(2, 3), torch.randn(3, 5)
        gm = export(function, x, weight)
        assert reason in reasons(canonical(gm))
        torch.testing.assert_close(call(gm, x, weight), function(x, weight))

    def test_an_added_activation_is_no_bias(self, export, ops):
        gm = export(lambda x, y: x @ self.WEIGHT + y, torch.randn(2, 3), torch.randn(5))
        canonical(gm)
        assert ops(gm) == ["linear", "add"]


def test_the_graph_says_that_it_is_canonical(export):
    gm = export(lambda x: x * 2, torch.randn(2, 3))
    run_passes(gm, [Canonicalize()])
    assert "canonical" in properties(gm)
