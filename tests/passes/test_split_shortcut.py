import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import examples
from qdiff_fx.errors import PassError
from qdiff_fx.ir.annotations import drop, nodes_with, path_of, require
from qdiff_fx.ir.facts import Input, Part
from qdiff_fx.ir.properties import properties
from qdiff_fx.ir.text import format_graph
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import Pass, PassReport, run_passes
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut

quick = examples(25)
aten = torch.ops.aten


def split(gm, policy="shortcut"):
    """Canonicalize and split in place; a second run must change nothing. Returns the report of the split."""
    report = run_passes(gm, [Canonicalize(), SplitShortcut(policy)])[1]
    text = format_graph(gm)
    again = run_passes(gm, [Canonicalize(), SplitShortcut(policy)])
    assert [r.changed for r in again] == [(), ()]
    assert again[1].refused == report.refused
    assert format_graph(gm) == text
    return report


def parts(gm):
    return nodes_with(gm, Part)


class Merge(nn.Module):
    """A layer over a concatenation of its inputs; `before` and `after` act on the inputs and on the concat."""

    def __init__(self, layer, dim=1, after=lambda x: x):
        super().__init__()
        self.layer, self.dim, self.after = layer, dim, after

    def forward(self, *inputs):
        return self.layer(self.after(torch.cat(inputs, dim=self.dim)))


def images(*channels, size=6, dtype=torch.float32):
    return [torch.randn(2, count, *[size] * 2, dtype=dtype) for count in channels]


def test_golden_graph(export):
    gm = export(Merge(nn.Conv2d(8, 4, 3, padding=1)), *images(5, 3), dynamic=True)
    (change,) = split(gm).changed
    assert (change.path, change.what) == ("layer", "split into 2 parts of 8 channels")
    assert format_graph(gm) == (
        "%0: f32[?,5,6,6] = input inputs_0\n"
        "%1: f32[?,3,6,6] = input inputs_1\n"
        "%2: f32[?,4,6,6] = aten.conv2d.default(%0, layer.weight_split_0_5, None, "
        "[1, 1], [1, 1], [1, 1], 1)  # layer\n"
        "%3: f32[?,4,6,6] = aten.conv2d.default(%1, layer.weight_split_5_8, layer.bias, "
        "[1, 1], [1, 1], [1, 1], 1)  # layer\n"
        "%4: f32[?,4,6,6] = aten.add.Tensor(%2, %3)  # layer\n"
        "return [%4]"
    )


def test_the_parts_say_what_they_are(export):
    gm = export(Merge(nn.Conv2d(10, 4, 1)), *images(5, 3, 2))
    (change,) = split(gm).changed
    assert [require(node, Part).channels for node in parts(gm)] == [(0, 5), (5, 8), (8, 10)]
    assert {require(node, Part).split_of for node in parts(gm)} == {change.node}
    assert {path_of(node) for node in parts(gm)} == {"layer"}
    assert [node.args[2] is not None for node in parts(gm)] == [False, False, True]


def test_only_the_slices_of_the_weight_remain(export):
    layer = nn.Conv2d(8, 4, 1)
    gm = export(Merge(layer), *images(5, 3))
    split(gm)
    tensors = {name: tensor.shape for name, tensor in [*gm.named_parameters(), *gm.named_buffers()]}
    assert tensors == {
        "layer.bias": (4,),
        "layer.weight_split_0_5": (4, 5, 1, 1),
        "layer.weight_split_5_8": (4, 3, 1, 1),
    }
    assert all(tensor.is_contiguous() for tensor in gm.buffers())


def test_the_network_given_is_not_touched(export):
    layer = nn.Conv2d(8, 4, 1)
    before = layer.weight.clone()
    gm = export(Merge(layer), *images(5, 3))
    split(gm)
    for buffer in gm.buffers():
        buffer.zero_()
    torch.testing.assert_close(layer.weight, before)


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}


@quick
@given(
    rank=st.integers(1, 3),
    channels=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    channels_last=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_convolutions_compute_the_same(
    rank, channels, kernel, stride, dilation, padding, mode, bias, channels_last, dtype, export, call, ops
):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    mode = "replicate" if mode == "reflect" and rank == 3 and dtype is torch.bfloat16 else mode
    layer = conv(
        sum(channels), 4, kernel, stride, padding, dilation=dilation, bias=bias, padding_mode=mode, dtype=dtype
    )
    inputs = [torch.randn(2, count, *[6] * rank, dtype=dtype) for count in channels]
    if channels_last and rank > 1:
        layout = torch.channels_last if rank == 2 else torch.channels_last_3d
        inputs = [x.to(memory_format=layout) for x in inputs]
    network = Merge(layer)
    gm = export(network, *inputs)
    assert len(split(gm).changed) == 1
    assert ops(gm).count(f"conv{rank}d") == len(channels)
    assert ops(gm).count("add") == len(channels) - 1
    assert "cat" not in ops(gm)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=tolerance, atol=tolerance)


@quick
@given(
    rank=st.integers(1, 3),
    channels=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_transposed_convolutions_compute_the_same(rank, channels, stride, bias, dtype, export, call, ops):
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    network = Merge(conv(sum(channels), 3, 3, stride, 1, output_padding=stride - 1, bias=bias, dtype=dtype))
    inputs = [torch.randn(2, count, *[4] * rank, dtype=dtype) for count in channels]
    gm = export(network, *inputs)
    assert len(split(gm).changed) == 1
    assert ops(gm).count(f"conv_transpose{rank}d") == len(channels)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=tolerance, atol=tolerance)


@quick
@given(
    channels=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    leading=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    negative=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_linear_layers_compute_the_same(channels, leading, negative, bias, dtype, export, call, ops):
    network = Merge(nn.Linear(sum(channels), 3, bias=bias, dtype=dtype), dim=-1 if negative else len(leading))
    inputs = [torch.randn(*leading, count, dtype=dtype) for count in channels]
    gm = export(network, *inputs)
    assert len(split(gm).changed) == 1
    assert ops(gm) == ["linear"] * 2 + ["add", *["linear", "add"] * (len(channels) - 2)]
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=tolerance, atol=tolerance)


def test_any_batch_after_the_split(export, call):
    network = Merge(nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"))
    gm = export(network, *images(5, 3), dynamic=True)
    split(gm)
    inputs = [torch.randn(7, count, 6, 6) for count in (5, 3)]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fill", [0.0, 1.5])
@pytest.mark.parametrize("ends", [(1, 0, 2, 1), (1, 1), (1, 1, 0, 0, 0, 0)])
def test_padding_moves_to_the_chunks(ends, fill, export, call, ops):
    network = Merge(nn.Conv2d(8, 4, 3), after=lambda x: F.pad(x, ends, value=fill))
    inputs = images(5, 3)
    gm = export(network, *inputs)
    assert len(split(gm).changed) == 1
    assert ops(gm) == ["pad", "pad", "conv2d", "conv2d", "add"]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=1e-4, atol=1e-5)


def test_nested_concats_are_opened_up(export, call, ops):
    layer = nn.Conv2d(10, 4, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, a, b, c):
            return self.layer(torch.cat([a, torch.cat([b, c], dim=-3)], dim=1))

    inputs = images(5, 3, 2)
    gm = export(Net(), *inputs)
    assert len(split(gm).changed) == 1
    assert [require(node, Part).channels for node in parts(gm)] == [(0, 5), (5, 8), (8, 10)]
    assert "cat" not in ops(gm)
    torch.testing.assert_close(call(gm, *inputs), Net()(*inputs), rtol=1e-4, atol=1e-5)


def test_a_tensor_concatenated_with_itself(export, call):
    network = Merge(nn.Conv2d(6, 4, 1), after=lambda x: torch.cat([x, x], dim=1))
    (x,) = images(3)
    gm = export(network, x)
    split(gm)
    assert [require(node, Part).channels for node in parts(gm)] == [(0, 3), (3, 6)]
    torch.testing.assert_close(call(gm, x), network(x), rtol=1e-4, atol=1e-5)


def test_empty_chunks_are_left_out(export, call):
    network = Merge(nn.Conv2d(5, 4, 1))
    inputs = images(3, 0, 2)
    gm = export(network, *inputs)
    split(gm)
    assert [require(node, Part).channels for node in parts(gm)] == [(0, 3), (3, 5)]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=1e-4, atol=1e-5)


def test_a_concat_somebody_else_reads_stays(export, call, ops):
    layer = nn.Conv2d(8, 8, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, a, b):
            both = torch.cat([a, b], dim=1)
            return self.layer(both) + both.relu()

    inputs = images(5, 3)
    gm = export(Net(), *inputs)
    split(gm)
    assert ops(gm).count("cat") == 1
    torch.testing.assert_close(call(gm, *inputs), Net()(*inputs), rtol=1e-4, atol=1e-5)


def test_two_layers_with_one_weight(export, call):
    layer = nn.Conv2d(8, 8, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, a, b):
            once = self.layer(torch.cat([a, b], dim=1))
            return self.layer(torch.cat([once[:, :5], b], dim=1)) + self.layer(once)

    inputs = images(5, 3)
    gm = export(Net(), *inputs)
    assert len(split(gm).changed) == 2
    assert {name for name, _ in gm.named_buffers()} == {"layer.weight_split_0_5", "layer.weight_split_5_8"}
    assert "layer.weight" in dict(gm.named_parameters())
    torch.testing.assert_close(call(gm, *inputs), Net()(*inputs), rtol=1e-4, atol=1e-5)


class Functional(nn.Module):
    """`function(self, *inputs)` with a convolution of 8 and a linear layer of 6 input channels at hand."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.linear = nn.Conv2d(8, 4, 1), nn.Linear(6, 4)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def write_into_first_channel(x):
    x[:, :1].mul_(0)
    return x


REFUSED = {
    "conv over rows": (
        lambda net, a, b: net.conv(torch.cat([a, a[:, :, :2]], dim=2)),
        (8, 3),
        "the concat is along dimension 2, the layer sums over dimension 1",
    ),
    "linear over channels": (
        lambda net, a, b: net.linear(torch.cat([a, b], dim=1)),
        (5, 3),
        "the concat is along dimension 1, the layer sums over dimension 3",
    ),
    "padded channels": (
        lambda net, a, b: net.conv(F.pad(torch.cat([a, b], dim=1), (0, 0, 0, 0, 1, 0))),
        (4, 3),
        "the concat is padded along its channels",
    ),
    "groups": (
        lambda net, a, b: net.grouped(torch.cat([a, b], dim=1)),
        (4, 4),
        "groups=2: an output channel sees only its own group",
    ),
    "computed weight": (
        lambda net, a, b: F.conv2d(torch.cat([a, b], dim=1), b[:, :, :3, :3].repeat(1, 2, 1, 1)[:, :6]),
        (3, 3),
        "the weight is not a constant",
    ),
    "no batch": (
        lambda net, a, b: net.conv(torch.cat([a[0], b[0]], dim=0)),
        (5, 3),
        "the input has no batch dimension",
    ),
    "conditioning": (
        lambda net, a, b: net.conv(torch.cat([b.sin(), b.cos()], dim=1)) * a[:, :1],
        (2, 4),
        "the concat holds only conditioning, the sample does not reach it",
    ),
    "in-place": (
        lambda net, a, b: net.conv(torch.cat([a, write_into_first_channel(b + 1)], dim=1)),
        (5, 3),
        "mul_ writes in place",
    ),
}


@pytest.mark.parametrize(("function", "channels", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_say_why(function, channels, reason, export, call):
    network, inputs = Functional(function), images(*channels)
    gm = export(network, *inputs)
    report = split(gm)
    assert report.changed == ()
    assert [refusal.reason for refusal in report.refused] == [reason]
    torch.testing.assert_close(call(gm, *inputs), network(*inputs))


@pytest.mark.parametrize(
    "widen",
    [
        lambda b, a: b * torch.ones(a.shape[0])[:, None, None, None],
        lambda b, a: b * torch.ones_like(a[:, :1]),
        lambda b, a: b.expand_as(a[:, :4]),
    ],
    ids=["size", "ones_like", "expand_as"],
)
def test_conditioning_as_large_as_the_sample_is_still_conditioning(widen, export):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 4, 1)
            self.table = nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self, a):
            wide = widen(self.table, a)
            return self.conv(torch.cat([wide.sin(), wide.cos()], dim=1)) * a[:, :1]

    gm = export(Net(), *images(5), dynamic=True)
    assert [r.reason for r in split(gm).refused] == [REFUSED["conditioning"][2]]


def test_chunks_of_different_dtypes(export):
    a, b = images(5, 3)
    gm = export(lambda a, b: F.conv2d(torch.cat([a, b], dim=1), torch.ones(4, 8, 1, 1)), a, b.half())
    assert [r.reason for r in split(gm).refused] == ["the chunks have different dtypes: torch.float16, torch.float32"]


def test_symbolic_channels(export):
    gm = export(
        lambda x: F.linear(torch.cat([x, torch.ones(1, 8)[:, x.shape[1] :]], dim=1), torch.ones(3, 8)),
        torch.randn(1, 4),
        symbolic={1: torch.export.Dim("width", min=2, max=6)},
    )
    assert [r.reason for r in split(gm).refused] == ["the number of channels of args_0 is symbolic"]


def test_without_a_marked_sample_every_concat_counts(export):
    gm = export(Functional(REFUSED["conditioning"][0]), *images(2, 4))
    for node in gm.graph.nodes:
        drop(node, Input)
    assert len(split(gm).changed) == 1


def test_plain_layers_are_not_mentioned(export):
    gm = export(nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1)), *images(3))
    report = split(gm, "all")
    assert (report.changed, report.refused) == ((), ())


BEHIND = {
    "norm and activation": lambda x: F.silu(F.group_norm(x, 4)),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8)).relu(),
    "scale and shift": lambda x: x * x.mean((2, 3), keepdim=True) + x[:1, :, :1, :1],
    "upsampling": lambda x: F.interpolate(x, scale_factor=2.0),
    "pooling": lambda x: F.avg_pool2d(F.pad(x.sigmoid(), (1, 1, 1, 1)), 2),
}


@pytest.mark.parametrize("after", BEHIND.values(), ids=BEHIND.keys())
@pytest.mark.parametrize("policy", ["shortcut", "all", "off"])
def test_layers_behind_a_norm_are_split_only_on_request(after, policy, export, call, ops):
    network = Merge(nn.Conv2d(8, 4, 1), after=after)
    inputs = images(5, 3)
    gm = export(network, *inputs)
    report = split(gm, policy)
    assert len(report.changed) == (policy == "all")
    assert ops(gm).count("conv2d") == (2 if policy == "all" else 1)
    if policy == "all":
        assert [require(node, Part).channels for node in parts(gm)] == [(0, 5), (5, 8)]
        assert all(node.args[0].target is aten.slice.Tensor for node in parts(gm))
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=1e-4, atol=1e-5)


def test_tokens_behind_a_norm(export, call):
    network = Merge(nn.Linear(8, 4), after=lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)) + 0.5)
    inputs = images(5, 3)
    gm = export(network, *inputs)
    assert len(split(gm, "all").changed) == 1
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x.flip(1) + 1,
        lambda x: x.reshape(2, 4, 2, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6),
        lambda x: F.silu(torch.cat([x.flip(1), x.flip(1)], dim=2)),
    ],
    ids=["flip", "shuffle", "other dimension"],
)
def test_mixed_channels_are_not_followed(mix, export):
    gm = export(Merge(nn.Conv2d(8, 4, 1), after=mix), *images(5, 3))
    assert split(gm, "all").changed == ()


def test_groups_behind_a_norm_are_refused(export):
    gm = export(Merge(nn.Conv2d(8, 4, 1, groups=4), after=F.silu), *images(5, 3))
    assert [r.reason for r in split(gm, "all").refused] == ["groups=4: an output channel sees only its own group"]
    assert split(export(Merge(nn.Conv2d(8, 4, 1, groups=4), after=F.silu), *images(5, 3))).refused == ()


def test_a_part_is_split_again_where_its_chunk_was_concatenated(export, call):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(10, 4, 1)

        def forward(self, a, b, c):
            return self.layer(torch.cat([c, F.silu(torch.cat([a, b], dim=1))], dim=1))

    net, inputs = Net(), images(5, 3, 2)
    gm = export(net, *inputs)
    changed = split(gm, "all").changed
    assert len(changed) == 2
    assert sorted(require(node, Part).channels for node in parts(gm)) == [(0, 2), (2, 7), (7, 10)]
    assert {require(node, Part).split_of for node in parts(gm)} == {changed[0].node}
    torch.testing.assert_close(call(gm, *inputs), net(*inputs), rtol=1e-4, atol=1e-5)


@quick
@given(
    channels=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    activation=st.sampled_from([F.silu, torch.relu, torch.tanh]),
    norm=st.booleans(),
    kernel=st.sampled_from([1, 3]),
)
def test_behind_a_norm_the_numbers_are_the_same(channels, activation, norm, kernel, export, call):
    total = sum(channels)
    network = Merge(
        nn.Conv2d(total, 3, kernel, padding=kernel // 2),
        after=lambda x: activation(F.group_norm(x, 1) if norm else x),
    )
    inputs = images(*channels)
    gm = export(network, *inputs)
    assert len(split(gm, "all").changed) == 1
    bounds = list(itertools.accumulate(channels, initial=0))
    assert [require(node, Part).channels for node in parts(gm)] == list(itertools.pairwise(bounds))
    torch.testing.assert_close(call(gm, *inputs), network(*inputs), rtol=1e-4, atol=1e-5)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="split policy 'some' is none of off, shortcut, all"):
        SplitShortcut("some")


def test_the_graph_must_be_canonical(export):
    gm = export(Merge(nn.Conv2d(8, 4, 1)), *images(5, 3))
    with pytest.raises(PassError, match=r"pass split_shortcut \(run first\): the graph is not canonical"):
        run_passes(gm, [SplitShortcut()])


class Damage(Pass):
    """Applies `harm` to the parts of a split layer."""

    name = "damage"

    def __init__(self, harm):
        self.harm = harm

    def run(self, gm):
        self.harm(gm, parts(gm))
        return PassReport(self.name)


def drop_first(gm, found):
    total = found[0].users.copy().popitem()[0]
    total.replace_all_uses_with(found[1])


def move_bias(gm, found):
    (bias,) = (node for node in gm.graph.nodes if node.target == "layer.bias")
    found[0].prepend(bias)
    found[0].args = (*found[0].args[:2], bias, *found[0].args[3:])


def exchange_weights(gm, found):
    found[0].args = (found[0].args[0], found[1].args[1], *found[0].args[2:])
    found[0].prepend(found[1].args[1])


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (drop_first, "leave out or repeat channels 0 to 5"),
        (move_bias, "the bias of conv2d is not on its last part alone"),
        (exchange_weights, "has a weight that is not of channels 0 to 5"),
    ],
)
def test_parts_that_no_longer_add_up_are_noticed(harm, problem, export):
    gm = export(Merge(nn.Conv2d(8, 4, 1)), *images(5, 3))
    split(gm)
    assert "split" in properties(gm)
    with pytest.raises(PassError, match=f"the result is not split: .*{problem}"):
        run_passes(copy.deepcopy(gm), [Damage(harm)])
