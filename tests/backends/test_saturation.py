"""Processors whose int8 products saturate at 16 bits: found by multiplying, met with 7-bit activation codes.

Where this processor is better than that, its libraries are told to use older instructions, in a process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_graphs import Plain, Shortcut, prepared, qdq_graph, run
from torch import fx, nn

from qdiff_fx import Rule, convert_qdiff, load_qdiff, save_qdiff
from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.base import activation_of
from qdiff_fx.backends.common.options import known_options
from qdiff_fx.backends.common.reduced_range import NOTE_ASKED, NOTE_SATURATES, overflows, reduce_range
from qdiff_fx.ir.edit import clean, copy_graph
from qdiff_fx.ir.facts import layer_id, layer_info, quantized_layers
from qdiff_fx.quant.numerics import sqnr_db

X, T = torch.linspace(-2, 3, 2 * 3 * 64).reshape(2, 3, 8, 8).sin() * 3, torch.tensor([40.0, 40.0])
BACKENDS = [
    name for name in ("inductor", "x86") if name == "inductor" or name in torch.backends.quantized.supported_engines
]


def reduced(gm: fx.GraphModule) -> fx.GraphModule:
    gm = copy_graph(gm)
    reduce_range(gm, quantized_layers(gm))
    return clean(gm)


def layers(gm: fx.GraphModule) -> dict[str, fx.Node]:
    return {layer_id(node): node for node in quantized_layers(gm)}


def code_range(layer: fx.Node) -> tuple[int, int]:
    return activation_of(layer).args[3:5]


class TestRewrite:
    def test_seven_bits_by_rewriting_are_seven_bits_by_configuration(self):
        net = Plain(nn.Conv2d(3, 8, 3))
        torch.testing.assert_close(
            run(reduced(qdq_graph(net, X)), X), run(qdq_graph(net, X, act_bits=7), X), rtol=1e-5, atol=1e-5
        )

    @pytest.mark.parametrize("granularity", ["tensor", "timestep"])
    def test_every_range_stays_and_so_does_what_the_network_computes(self, granularity):
        net = Shortcut()
        gm = qdq_graph(net, X, T, act_granularity=granularity)
        weight_layers = [node for node in quantized_layers(reduced(gm)) if layer_info(node).kind != "attention"]
        assert {code_range(node) for node in weight_layers} == {(0, 127)}
        exact = net(X, T).detach()
        coarse, fine = sqnr_db(exact, run(reduced(gm), X, T)), sqnr_db(exact, run(gm, X, T))
        assert fine - 9 < coarse < fine

    def test_a_second_run_changes_nothing(self):
        gm = reduced(qdq_graph(Shortcut(), X, T, sample_act_bits=16))
        assert not reduce_range(gm, quantized_layers(gm))

    @pytest.mark.parametrize(("bits", "expected"), [(8, True), (7, False), (4, False)])
    def test_only_weights_that_may_overflow(self, bits, expected):
        gm = qdq_graph(Plain(nn.Conv2d(3, 8, 3)), X, weight_bits=bits)
        (layer,) = quantized_layers(gm)
        assert overflows(gm, layer) == expected
        assert bool(reduce_range(gm, [layer])) == expected

    def test_whoever_else_reads_the_tensor_keeps_8_bits(self):
        class TwoReaders(nn.Module):
            def __init__(self):
                super().__init__()
                self.large, self.small = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

            def forward(self, x):
                return self.large(x) + self.small(x)

        gm = qdq_graph(TwoReaders(), X, rules=(Rule("small", weight_bits=4),))
        found = layers(reduced(gm))
        assert code_range(found["large"]) == (0, 127)
        assert code_range(found["small"]) == (0, 255)

    @pytest.mark.parametrize("granularity", ["tensor", "timestep"])
    def test_the_second_code_of_a_wide_input_covers_the_coarser_steps_of_the_first(self, granularity):
        """14 of 16 bits are left: without the wider range of the second code it would be about 8."""
        net = Shortcut()
        gm = qdq_graph(net, X, T, act_granularity=granularity, sample_act_bits=16)
        values = fx.Interpreter(reduced(gm), garbage_collect_values=False)
        with torch.no_grad():
            values.run(X, T)
        first, second = (node for path, node in layers(values.module).items() if path.startswith("conv_in"))
        total = values.env[first.args[0]] + values.env[second.args[0]]
        assert sqnr_db(X, total) > 75

    def test_a_saved_network_is_reduced_alike(self, tmp_path):
        network = convert_qdiff(prepared(Shortcut(), X, T, sample_act_bits=16), "reference")
        again = load_qdiff(save_qdiff(network, tmp_path / "saved"), "reference")
        first, second = (net.with_backend("reference", reduce_range=True) for net in (network, again))
        assert torch.equal(first(X, T), second(X, T))

    def test_a_bfloat16_network(self):
        net, x = Plain(nn.Conv2d(3, 8, 3)).bfloat16(), X.bfloat16()
        gm = qdq_graph(net, x)
        result = run(reduced(gm), x)
        assert result.dtype == torch.bfloat16
        assert sqnr_db(run(gm, x).float(), result.float()) > 30


class TestLowering:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_what_saturates_is_reduced_and_said(self, backend, monkeypatch):
        lowering = get_backend(backend)
        gm = qdq_graph(Shortcut(), X, T, rules=(Rule("deep", weight_bits=4),))
        monkeypatch.setattr(type(lowering), "saturates", lambda self: True)
        rows = {row.info.path: row for row in lowering.lower(gm, known_options(lowering, compile=False)).layers}
        assert rows["conv_in"].note == NOTE_SATURATES
        assert rows["conv_in"].integer
        assert rows["deep"].note == ""
        plain = lowering.lower(gm, known_options(lowering, compile=False, reduce_range=False)).layers
        assert not any(row.note for row in plain)
        before = next(row for row in plain if row.info.path == "conv_in").act_scale
        assert rows["conv_in"].act_scale == pytest.approx([255 / 127 * scale for scale in before])

    def test_explain_shows_it(self):
        network = convert_qdiff(prepared(Plain(nn.Conv2d(3, 8, 3)), X), "reference")
        assert "7 bits" not in str(network.explain())
        asked = network.with_backend("reference", reduce_range=True).explain()
        assert NOTE_ASKED.split(":")[0] in " ".join(str(asked).split())
        assert asked.to_json()[0]["note"] == NOTE_ASKED

    def test_native_never_saturates(self):
        assert not get_backend("native").saturates()
        assert not get_backend("reference").saturates()


class Chain(nn.Module):
    """A convolution whose products overflow wherever they can: large inputs of one sign, large weights of one sign."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 16)
        for layer in (self.conv, self.linear):
            nn.init.uniform_(layer.weight, 0.5, 1.0)

    def forward(self, x):
        return self.linear(F.relu(self.conv(x)).flatten(2).transpose(1, 2))


def measure_forced() -> dict[str, dict[str, float]]:
    """Agreement with the reference in dB; runs in the process whose instructions were chosen."""
    torch.manual_seed(0)
    x = torch.rand(2, 32, 6, 6)
    network = convert_qdiff(prepared(Chain(), x, act_granularity="tensor"), "reference")

    def agreement(backend: str, compile: bool = False, **options) -> float:
        ours = network.with_backend(backend, known_options(get_backend(backend), compile=compile, **options))
        judge = {"output_quantizers": backend == "x86", "reduce_range": options.get("reduce_range", True)}
        return sqnr_db(network.with_backend("reference", **judge)(x), ours(x))

    return {
        name: {
            "saturates": get_backend(name).saturates(),
            "by default": agreement(name),
            "without": agreement(name, reduce_range=False),
            "notes": sum(bool(row.note) for row in network.with_backend(name).explain()),
        }
        | ({"compiled": agreement(name, compile=True)} if name == "inductor" else {})
        for name in BACKENDS
    }


@pytest.fixture(scope="module", params=["AVX2", "AVX512"])
def forced(request) -> dict[str, dict[str, float]]:
    """What `measure_forced` finds where oneDNN and FBGEMM use no newer instructions than these."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("these libraries choose among instructions of x86 processors")
    onednn = {"AVX2": "AVX2", "AVX512": "AVX512_CORE"}[request.param]
    tests, root = Path(__file__).parents[1], Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ
        | {"ONEDNN_MAX_CPU_ISA": onednn, "FBGEMM_ENABLE_INSTRUCTIONS": request.param}
        | {"PYTHONPATH": os.pathsep.join(map(str, (root, tests)))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_older_instructions_lose_products_and_we_notice(forced, backend):
    assert forced[backend]["saturates"]
    assert forced[backend]["without"] < 30


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_seven_bits_agree_on_older_instructions(forced, backend):
    assert forced[backend]["notes"] == 2
    assert forced[backend]["by default"] > 60
    assert forced[backend].get("compiled", 100) > 60


if __name__ == "__main__":
    print(json.dumps(measure_forced()))
