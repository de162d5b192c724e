"""Where observers sit, what they see, and that they change nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.errors import CalibrationError, PassError
from qdiff_fx.ir.annotations import path_of, put
from qdiff_fx.ir.facts import Input
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.quantize.insert_observers import InsertObservers
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut

ATTENTION = "scaled_dot_product_attention"  # outside every module, so it goes by its operator
X, T = torch.linspace(-2, 3, 2 * 5 * 8).reshape(2, 5, 8), torch.tensor([0.0, 700.0])


class Attention(nn.Module):
    """Three layers that read one tensor, attention over what they make, and a layer behind it."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x, t):
        x = x + t[:, None, None] / 1000
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def observe(gm, timestep=True, outputs=False, **config):
    """Annotate and insert in place; a second run must change nothing. Returns the report."""
    config = QDiffConfig(timestep_bins=10, **config)
    if timestep:
        put([node for node in gm.graph.nodes if node.op == "placeholder"][-1], Input("timestep"))
    report = run_passes(gm, [Canonicalize(), Annotate(config), InsertObservers(config, outputs=outputs)])[-1]
    before = str(gm.graph)
    assert run_passes(gm, [InsertObservers(config, outputs=outputs)])[-1].changed == ()
    assert str(gm.graph) == before
    return report


def observers(gm):
    return {module.name: module for module in gm.modules() if isinstance(module, TimestepObserver)}


def readers(gm, name):
    """The nodes that read an observer's result."""
    (node,) = [n for n in gm.graph.nodes if n.op == "call_module" and gm.get_submodule(n.target).name == name]
    return {path_of(user) for user in node.users}


@pytest.fixture
def gm(export):
    torch.manual_seed(0)
    return export(Attention(), X, T)


def test_nothing_changes_but_the_observers(gm, call):
    expected = call(gm, X, T)
    report = observe(gm)
    assert torch.equal(call(gm, X, T), expected)
    assert {change.path for change in report.changed} == {ATTENTION, "to_q", "to_k", "to_v", "out"}


def test_layers_that_read_one_tensor_share_its_observer(gm):
    observe(gm)
    assert set(observers(gm)) == {
        "to_q input",
        *(f"{ATTENTION} input", f"{ATTENTION} input 1", f"{ATTENTION} input 2"),
        "out input",
    }
    assert readers(gm, "to_q input") == {"to_q", "to_k", "to_v"}


def test_layers_under_another_rule_have_their_own(gm):
    observe(gm, rules=(Rule("to_k", act_bits=6),))
    assert readers(gm, "to_q input") == {"to_q", "to_v"}
    assert readers(gm, "to_k input") == {"to_k"}


def test_the_parts_of_a_split_shortcut_are_told_apart(export):
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(5, 4, 3)

        def forward(self, deep, shallow):
            return self.conv(torch.cat([deep, shallow], 1))

    gm = export(Shortcut(), torch.randn(2, 3, 6, 6), torch.randn(2, 2, 6, 6))
    run_passes(gm, [Canonicalize(), SplitShortcut()])
    observe(gm, timestep=False)
    assert {"conv[0:3] input", "conv[3:5] input"} <= set(observers(gm))


def test_layers_in_float_are_not_watched(gm):
    observe(gm, rules=(Rule("*", quantize=False),), quantize_attention=False)
    assert observers(gm) == {}
    assert InsertObservers(QDiffConfig()).run(gm).changed == ()


def test_each_sample_counts_under_its_timestep(gm, call):
    observe(gm)
    call(gm, X, T)
    observer = observers(gm)["to_q input"]
    assert observer.count.tolist() == [40, 0, 0, 0, 0, 0, 0, 40, 0, 0]
    assert observer.min_val[0] == X[0].min()
    assert observer.max_val[7] == pytest.approx((X[1].max() + 0.7).item())
    # Attention sees heads folded into the batch: still sample by sample.
    assert observers(gm)[f"{ATTENTION} input 1"].count.tolist() == observer.count.tolist()


def test_outputs_are_watched_on_demand_only(gm):
    observe(gm, outputs=True)
    outputs = {name for name in observers(gm) if name.endswith("output")}
    assert outputs == {f"{path} output" for path in ("to_q", "to_k", "to_v", "out")}


def test_outputs_are_watched_behind_the_layer(gm, call):
    observe(gm, outputs=True)
    result = call(gm, X, T)
    output = observers(gm)["out output"]
    assert output.min_val.min() == result.min()
    assert output.max_val.max() == result.max()


def test_a_network_without_a_timestep_is_always_at_the_first(export, call):
    gm = export(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), X)
    observe(gm, timestep=False)
    call(gm, X)
    assert all(observer.count[0] > 0 and observer.count[1:].sum() == 0 for observer in observers(gm).values())


def test_a_timestep_that_comes_after_the_layer(export, call):
    """The observer needs both; it is placed behind the later one."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, t):
            return self.layer(x) * t[:, None, None]

    gm = export(Late(), X, T)
    expected = call(gm, X, T)
    observe(gm)
    assert torch.equal(call(gm, X, T), expected)


def test_errors_name_the_layer(gm, call):
    observe(gm)
    with pytest.raises(CalibrationError, match="to_q input: the activation holds NaN or infinity"):
        call(gm, X * torch.nan, T)
    with pytest.raises(CalibrationError, match=r"to_q input: timestep 1001.0 is outside the schedule \[0, 1000\]"):
        call(gm, X, T + 1001)


def test_only_an_annotated_graph_is_observed(gm):
    with pytest.raises(PassError, match="the graph is not annotated"):
        run_passes(gm, [Canonicalize(), InsertObservers(QDiffConfig())])
