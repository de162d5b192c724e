"""What gets quantized at how many bits, and each reason for leaving a layer in float."""

import pytest
import torch
import torch.nn.functional as F
from tiny_graphs import alike
from torch import nn

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.errors import ConfigError, PassError
from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.facts import LayerPlan, layer_id
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut
from qdiff_fx.quant.qparams import TensorSpec


def annotate(gm, **config):
    """The plans by path, and the report; a second run must plan the same."""
    passes = [Canonicalize(), SplitShortcut(), Annotate(QDiffConfig(**alike(config)))]
    report = run_passes(gm, passes)[-1]
    found = plans(gm)
    assert run_passes(gm, passes[-1:])[-1] == report
    assert plans(gm) == found
    return found, report


def plans(gm):
    return {layer_id(node): require(node, LayerPlan) for node in nodes_with(gm, LayerPlan)}


class Attention(nn.Module):
    """(B, L, 8) -> (B, L, 8) on two heads."""

    def __init__(self, **options):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.options = options

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2)


class Inner(nn.Module):
    """A network with a named block, for paths."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x)


IMAGE, TOKENS = (2, 4, 6, 6), (2, 5, 8)


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9), "conv"),
        (lambda: nn.Conv2d(4, 6, 3), IMAGE, "conv"),
        (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), IMAGE, "conv"),
        (lambda: nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5), "conv"),
        (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 9), "conv_transpose"),
        (lambda: nn.ConvTranspose2d(4, 6, 3), IMAGE, "conv_transpose"),
        (lambda: nn.ConvTranspose3d(4, 6, 3), (2, 4, 5, 5, 5), "conv_transpose"),
        (lambda: nn.Linear(8, 6), TOKENS, "linear"),
        (lambda: nn.Linear(8, 6), (2, 8), "linear"),
    ],
)
def test_every_kind_of_layer(export, layer, shape, kind):
    found, report = annotate(export(Inner(layer()), torch.randn(shape)), weight_bits=4, act_bits=7, act_range="minmax")
    assert [(change.path, change.what) for change in report.changed] == [("block", f"{kind} annotated")]
    info, (activation,) = found["block"].info, found["block"].inputs.values()
    assert (info.kind, info.weight_bits, info.act_bits, info.softmax_bits) == (kind, 4, 7, 0)
    assert (activation.spec, activation.act_range) == (TensorSpec(7), "minmax")


def test_attention_takes_a_u8_query_and_s8_keys_and_values(export):
    found, _ = annotate(export(Inner(Attention()), torch.randn(TOKENS)), act_bits=7, softmax_bits=16)
    plan = found["block"]
    assert (plan.info.kind, plan.info.weight_bits, plan.info.act_bits, plan.info.softmax_bits) == (
        "attention",
        0,
        7,
        16,
    )
    signed = TensorSpec(7, signed=True, symmetric=True)
    assert [plan.inputs[index].spec for index in (0, 1, 2)] == [TensorSpec(7), signed, signed]
    assert set(found) == {"block", "block.to_q", "block.to_k", "block.to_v"}


def test_parts_of_a_shortcut_have_their_channels_in_their_path_and_the_modules_rules(export):
    class Merge(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut = nn.Conv2d(8, 4, 1)

        def forward(self, x, y):
            return self.shortcut(torch.cat([x, y], dim=1))

    gm = export(Merge(), torch.randn(2, 5, 6, 6), torch.randn(2, 3, 6, 6))
    found, _ = annotate(gm, rules=(Rule("shortcut", weight_bits=3),))
    assert {path: plan.info.weight_bits for path, plan in found.items()} == {"shortcut[0:5]": 3, "shortcut[5:8]": 3}


class TestRules:
    @pytest.fixture
    def gm(self, export):
        return export(Inner(Attention()), torch.randn(TOKENS))

    def test_globs_and_regular_expressions(self, gm):
        rules = (Rule("block.*", weight_bits=4), Rule(r"re:block\.to_[kv]", act_bits=5, act_range="percentile"))
        found, _ = annotate(gm, rules=rules)
        bits = {path: (plan.info.weight_bits, plan.info.act_bits) for path, plan in found.items()}
        assert bits == {"block": (0, 8), "block.to_q": (4, 8), "block.to_k": (4, 5), "block.to_v": (4, 5)}
        assert found["block.to_k"].inputs[0].act_range == "percentile"
        assert found["block.to_q"].inputs[0].act_range == "mse"

    def test_the_last_rule_wins(self, gm):
        rules = (Rule("*", quantize=False), Rule("block.to_q", quantize=True), Rule("block.*", weight_bits=2))
        found, report = annotate(gm, rules=rules)
        assert {path for path, plan in found.items() if plan.info.quantized} == {"block.to_q"}
        assert {refusal.reason for refusal in report.refused} == {"a rule of the configuration keeps it in float"}

    def test_a_layer_in_float_has_no_bits_and_no_inputs(self, gm):
        found, _ = annotate(gm, rules=(Rule("block", quantize=False),))
        assert found["block"].inputs == {}
        assert (found["block"].info.act_bits, found["block"].info.softmax_bits) == (0, 0)

    def test_a_rule_that_matches_nothing_names_paths_that_exist(self, gm):
        message = r"Rule\('block.to_x'\): the rule matches no layer .*such as block, block.to_k, block.to_q, block.to_v"
        with pytest.raises(ConfigError, match=message):
            annotate(gm, rules=(Rule("block.to_q"), Rule("block.to_x")))

    def test_a_module_without_weights_is_no_layer(self, export):
        with pytest.raises(ConfigError, match="matches no layer"):
            annotate(export(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(TOKENS)), rules=(Rule("1"),))


class TestReasons:
    def reason(self, gm, path="", **config):
        """Of the layer with this id, or of the only one."""
        found, report = annotate(gm, **config)
        path = path or next(iter(found))
        info = found[path].info
        assert found[path].inputs == {}
        assert (info.weight_bits, info.act_bits, info.softmax_bits) == (0, 0, 0)
        assert [refusal.reason for refusal in report.refused if refusal.path == path] == [info.float_reason]
        return info.float_reason

    def test_a_weight_that_is_computed(self, export):
        class Modulated(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(6, 8))

            def forward(self, x):
                return F.linear(x, self.weight * x.mean())

        assert self.reason(export(Modulated(), torch.randn(TOKENS))) == "its weight is not a constant"

    def test_a_grouped_transposed_convolution(self, export):
        gm = export(nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(IMAGE))
        assert "grouped transposed convolution" in self.reason(gm)

    def test_attention_switched_off(self, export):
        gm = export(Inner(Attention()), torch.randn(TOKENS))
        assert self.reason(gm, "block", quantize_attention=False) == "quantize_attention is off"

    def test_attention_has_no_activations_of_16_bits(self, export):
        gm = export(Inner(Attention()), torch.randn(TOKENS))
        assert self.reason(gm, "block", rules=(Rule("block", act_bits=16),)) == "attention has no 16-bit activations"

    def test_attention_whose_values_have_another_size(self, export):
        x = torch.randn(2, 2, 5, 4)
        gm = export(lambda x: F.scaled_dot_product_attention(x, x, x[..., :2]), x)
        assert self.reason(gm) == "its values have another size than its keys"


def test_only_a_canonical_graph_is_annotated(export):
    with pytest.raises(PassError, match="the graph is not canonical"):
        run_passes(export(nn.Linear(8, 6), torch.randn(TOKENS)), [Annotate(QDiffConfig())])


class Twice(nn.Module):
    """One layer called twice, and one outside every module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.layer(self.layer(x)), self.layer.weight * 1.0)


def test_layers_of_one_path_have_ids_that_rules_can_name(export):
    gm = export(Twice(), torch.randn(TOKENS))
    found, _ = annotate(gm, rules=(Rule("layer#2", weight_bits=2),))
    first, second, functional = found
    assert (first, second) == ("layer", "layer#2")
    assert [found[each].info.weight_bits for each in found] == [8, 2, 8]
    found, _ = annotate(gm, rules=(Rule("layer", quantize=False), Rule(functional, weight_bits=3)))
    assert [found[each].info.weight_bits for each in (first, second, functional)] == [0, 0, 3]
