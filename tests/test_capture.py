"""Capture: the graph computes what the network does, for every call the network takes, and leaves it alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from torch import fx, nn
from zoo import resized, tensors_of

from examples import examples
from qdiff_fx.capture import CapturedNetwork, capture
from qdiff_fx.errors import CaptureError, InputError
from qdiff_fx.ir.annotations import path_of, value
from qdiff_fx.ir.edit import insert_call, is_op
from qdiff_fx.signature import CaptureMismatchError, DropIn, Size

TOLERANCE = 1e-5


def assert_same(actual: Any, expected: Any) -> None:
    """Equal tensors up to TOLERANCE of the largest value."""
    for ours, theirs in zip(tensors_of(actual), tensors_of(expected), strict=True):
        assert ours.shape == theirs.shape
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < TOLERANCE, f"relative error {error:.1e}"


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def test_inserted_calls_keep_sizes_symbolic():
    graph = zoo.captured("handwritten_sum")[2]
    module = fx.GraphModule(graph.module, copy.deepcopy(graph.module.graph))
    concat = next(node for node in module.graph.nodes if is_op(node, torch.ops.aten.cat.default))
    part = insert_call(module.graph, concat, torch.ops.aten.relu.default, (concat.args[0][0],), like=concat)
    assert path_of(part) == path_of(concat)
    assert not isinstance(value(part).shape[0], int)


def test_exact_capture_takes_only_its_own_sizes():
    model, inputs = zoo.handwritten_sum()
    graph = capture(model, inputs, dynamic=False)
    assert graph.signature.sample.dims == (2, 3, 16, 16)
    ours = DropIn(graph.module, graph.signature)
    assert_same(ours(**inputs), model(**inputs))
    with pytest.raises(CaptureMismatchError, match="size 3 in dimension 0"):
        ours(**resized(inputs, 3))


class TestTheModelIsLeftAlone:
    def test_attributes_set_in_forward_stay_unset(self):
        class Caching(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale, self.seen = None, []

            def forward(self, x, t):
                self.scale = torch.ones(3, 1, 1) if self.scale is None else self.scale
                self.seen.append(x.shape)
                return x * self.scale

        model = Caching().eval()
        capture(model, {"x": zoo.noise(3), "t": 1})
        assert model.scale is None
        assert model.seen == []

    def test_no_hooks_and_no_class_changes(self):
        model, inputs = zoo.one_resolution()
        before = {path: (type(m), dict(m.__dict__)) for path, m in model.named_modules()}
        hooks = {path: len(m._forward_hooks) + len(m._forward_pre_hooks) for path, m in model.named_modules()}
        capture(model, inputs, dynamic=False)
        assert {path: (type(m), dict(m.__dict__)) for path, m in model.named_modules()} == before
        assert {path: len(m._forward_hooks) + len(m._forward_pre_hooks) for path, m in model.named_modules()} == hooks

    def test_replacing_the_graphs_weights_does_not_reach_it(self):
        model, inputs = zoo.handwritten_sum()
        expected = model(**inputs)
        module = capture(model, inputs).module
        for parameter in module.parameters():
            parameter.data = torch.zeros_like(parameter)
        assert_same(model(**inputs), expected)

    def test_tied_weights_stay_tied(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Conv2d(3, 3, 1)
                self.second = nn.Conv2d(3, 3, 1)
                self.second.weight = self.first.weight

            def forward(self, x):
                return self.second(self.first(x))

        module = capture(Tied().eval(), {"x": zoo.noise(3)}).module
        weights = {id(p) for name, p in module.named_parameters() if name.endswith("weight")}
        assert len(weights) == 1


class TestUnusualNetworks:
    def check(self, model: nn.Module, inputs: dict[str, Any]) -> fx.GraphModule:
        model.eval()
        graph = capture(model, inputs)
        call = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        expected = model(**inputs)
        assert_same(DropIn(graph.module, graph.signature)(**call), expected)
        return graph.module

    def test_in_place_operators_become_functional(self):
        class InPlace(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

            def forward(self, x):
                h = self.norm(self.conv(x))
                kept = h
                h = F.relu(h, inplace=True)
                h += x
                h[:, 0] = 1
                x.mul_(2)
                return h + kept

        module = self.check(InPlace(), {"x": zoo.noise(3)})
        targets = {node.target for node in module.graph.nodes}
        assert torch.ops.aten.batch_norm.default in targets
        assert not any(str(target).split(".")[-2:][0].endswith("_") for target in targets)

    def test_the_callers_tensors_are_not_written(self):
        class Doubling(nn.Module):
            def forward(self, x):
                return x.mul_(2)

        graph = capture(Doubling().eval(), {"x": zoo.noise(3)})
        x = zoo.noise(3)
        before = x.clone()
        assert_same(DropIn(graph.module, graph.signature)(x), 2 * before)
        assert torch.equal(x, before)

    def test_regions_without_gradient_or_autocast_are_inlined(self):
        class Regions(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                with torch.enable_grad():
                    h = self.conv(x)
                with torch.autocast("cpu", enabled=False):
                    return self.conv(h.float())

        module = self.check(Regions(), {"x": zoo.noise(3)})
        assert sum(is_op(node, torch.ops.aten.conv2d.default) for node in module.graph.nodes) == 2

    def test_fixed_image_size_keeps_the_batch_open(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Parameter(torch.randn(1, zoo.SIZE**2, 3))

            def forward(self, x):
                tokens = x.flatten(2).transpose(1, 2) + self.embedding
                return tokens.transpose(1, 2).reshape(x.shape)

        model = Positions().eval()
        graph = capture(model, {"x": zoo.noise(3)})
        assert graph.signature.sample.dims == (Size("batch"), 3, zoo.SIZE, zoo.SIZE)
        x = zoo.noise(3, batch=5)
        assert_same(DropIn(graph.module, graph.signature)(x), model(x))

    def test_a_branch_on_the_batch_fixes_the_batch(self):
        class Branching(nn.Module):
            def forward(self, x):
                return x * 2 if x.shape[0] > 4 else x

        graph = capture(Branching().eval(), {"x": zoo.noise(3)})
        assert graph.signature.sample.dims[0] == zoo.BATCH
        with pytest.raises(CaptureMismatchError):
            DropIn(graph.module, graph.signature)(zoo.noise(3, batch=5))

    def test_an_image_that_does_not_divide_evenly(self):
        class Halving(nn.Module):
            def __init__(self):
                super().__init__()
                self.down, self.up = nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.ConvTranspose2d(3, 3, 2, 2)

            def forward(self, x):
                return self.up(self.down(x))[:, :, : x.shape[2], : x.shape[3]] + x

        self.check(Halving(), {"x": torch.randn(2, 3, 15, 16)})

    def test_no_timestep(self):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        graph = capture(model.eval(), {"input": zoo.noise(3)})
        assert graph.signature.timestep is None

    def test_a_module_called_twice_has_one_path(self):
        conv = nn.Conv2d(3, 3, 1)
        module = self.check(nn.Sequential(conv, nn.ReLU(), conv), {"input": zoo.noise(3)})
        paths = [path_of(n) for n in module.graph.nodes if is_op(n, torch.ops.aten.conv2d.default)]
        assert len(paths) == 2
        assert not any("@" in path for path in paths)


class TestErrors:
    def test_training_mode(self):
        with pytest.raises(CaptureError, match=r"UNet2DModel: is in training mode.*model.eval\(\)"):
            capture(zoo.unconditional().train(), {"sample": zoo.noise(3), "timestep": 1})

    def test_one_module_in_training_mode(self):
        model, inputs = zoo.ddpm_cifar()
        model.mid_block.resnets[0].dropout.train()
        with pytest.raises(CaptureError, match=r"mid_block.resnets.0.dropout: is in training mode"):
            capture(model, inputs)

    def test_code_that_needs_a_value_names_its_module(self):
        class Branch(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), Branch())).eval()
        with pytest.raises(CaptureError, match=r"^1\.1: torch.export cannot trace it: .*torch.where") as caught:
            capture(model, {"input": zoo.noise(3)})
        assert caught.value.__cause__ is not None

    def test_wrong_dtype_names_the_module(self):
        model, inputs = zoo.ddpm_cifar()
        with pytest.raises(CaptureError, match=r"conv_in: .*double"):
            capture(model, inputs | {"sample": zoo.noise(3).double()})

    def test_autocast_names_the_module(self):
        class Casting(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                with torch.autocast("cpu", torch.bfloat16):
                    return self.conv(x)

        with pytest.raises(CaptureError, match="1: .*under torch.autocast"):
            capture(nn.Sequential(nn.ReLU(), Casting()).eval(), {"input": zoo.noise(3)})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"encoder_hidden_states": None, "bogus": 1}, "'bogus': the network has no such argument"),
            ({"sample": object()}, "'sample': cannot take 'object'"),
            ({"timestep": torch.tensor([1, 2, 3])}, r"shape \(3,\) with a batch of 2"),
        ],
    )
    def test_examples_that_do_not_fit(self, changes, message):
        model, inputs = zoo.sd1()
        with pytest.raises((InputError, CaptureError), match=message):
            capture(model, inputs | changes)

    def test_missing_argument(self):
        model, inputs = zoo.sd1()
        del inputs["encoder_hidden_states"]
        with pytest.raises(InputError, match="missing encoder_hidden_states"):
            capture(model, inputs)

    def test_unsupported_result(self):
        class Odd(nn.Module):
            def forward(self, x):
                return object()

        with pytest.raises(CaptureError, match="returns 'object'"):
            capture(Odd().eval(), {"x": zoo.noise(3)})


class TestCapturedNetwork:
    def test_captures_again_for_other_conditioning_and_keeps_it(self):
        class Masked(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, x, t, mask=None):
                h = self.conv(x) + t[:, None, None, None]
                return h if mask is None else h * mask[:, None, None, None]

        unmasked = {"x": zoo.noise(3), "t": torch.tensor([4.0, 30.0])}
        model = Masked().eval()
        ours = CapturedNetwork.of(model, unmasked | {"mask": torch.tensor([0.5, 2.0])})
        assert_same(ours(**unmasked), model(**unmasked))
        (further,) = ours._further.values()
        larger = resized(unmasked, 3)
        assert_same(ours(**larger), model(**larger))
        assert list(ours._further.values()) == [further]

    def test_captures_again_for_other_sizes(self):
        model, inputs = zoo.handwritten_sum()
        ours = CapturedNetwork.of(model, inputs, dynamic=False)
        for batch in (1, 2, 3, 4, 5, 6, 7):
            call = {"x": zoo.noise(3, batch), "t": 5}
            assert_same(ours(**call), model(call["x"], torch.tensor([5])))
        assert len(ours._further) <= 4

    def test_a_wrong_call_is_not_captured(self):
        model, inputs, graph = zoo.captured("handwritten_sum")
        ours = CapturedNetwork(graph, model)
        with pytest.raises(InputError, match="float64"):
            ours(inputs["x"].double(), inputs["t"])
        with pytest.raises(InputError, match="'x': has size 5 in dimension 1"):
            ours(zoo.noise(5), inputs["t"])
        assert not ours._further

    def test_deepcopy_runs_on_its_own_weights(self):
        model, inputs, graph = zoo.captured("handwritten_sum")
        ours = CapturedNetwork(graph, model)
        twin = copy.deepcopy(ours)
        for parameter in twin.parameters():
            parameter.zero_()
        assert twin(**inputs).abs().max() == 0
        assert_same(ours(**inputs), model(**inputs))


# No shrinking: every example is a capture of seconds.
@pytest.mark.slow
@examples(4, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(
    widths=st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=2),
    attention=st.booleans(),
    scale_shift=st.booleans(),
    batch=st.integers(1, 4),
    steps=st.tuples(st.integers(2, 4), st.integers(2, 4)),
)
def test_random_unets(widths, attention, scale_shift, batch, steps):
    level = "Attn" if attention else ""
    model = zoo.unconditional(
        block_out_channels=tuple(widths),
        down_block_types=(f"{level}DownBlock2D",) * len(widths),
        up_block_types=(f"{level}UpBlock2D",) * len(widths),
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
    )
    factor = 2 ** (len(widths) - 1)
    graph = capture(model, {"sample": zoo.noise(3, size=8), "timestep": 3})
    x, t = torch.randn(batch, 3, steps[0] * factor, steps[1] * factor), torch.rand(batch) * 100
    assert_same(DropIn(graph.module, graph.signature)(x, t), model(x, t))
