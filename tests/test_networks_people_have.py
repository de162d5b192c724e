"""Networks as people have them, each through the whole job: backends agree, saved is loaded, calls are free.

A network is a program of the graph fuzzer, as short as the fault that it was once found with.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qdiff_fx.api
from qdiff_fx import QDiffConfig, Rule, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.passes.canonicalize.compute_in_float32 import ComputeInFloat32
from qdiff_fx.passes.framework import Pass, PassReport
from tests.fuzz.network import build, call
from tests.fuzz.oracle import attempt, flat, ratio
from tests.fuzz.program import block, program

PROGRAMS = {
    "float16": program(block("norm"), block("attention"), block("shift", how="view"), dtype="float16"),
    "bfloat16": program(block("level"), block("mlp", form="geglu"), dtype="bfloat16", condition="scalar"),
    "float64": program(block("conv"), dtype="float64"),
    "computed biases": program(block("odd", what="summed_biases"), block("odd", what="computed_bias")),
    "parametrized": program(block("conv", weight="weight_norm"), block("conv", weight="standardised", groups=2)),
    "a constant image": program(block("odd", what="constant_conv"), block("odd", what="computed_weight")),
    "one head of keys": program(block("attention", heads=2, keys="one_head"), block("attention", keys="chunk")),
    "learned keys": program(block("attention", keys="learned"), condition="tokens"),
    "to itself": program(block("twice", how="self_sum"), block("twice", how="shared"), rank=1),
    "a video": program(block("level"), block("norm", norm="batch"), rank=3, timestep="none"),
}


@pytest.fixture(autouse=True)
def without_collecting_garbage(monkeypatch):
    """Loading collects it, through all of torch: most of the time that these tests would take."""
    monkeypatch.setattr("qdiff_fx.networks.quantized.release_unused", lambda: None)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_quantized_and_its_backends_agree(name):
    trial = attempt(PROGRAMS[name])
    assert trial.finding is None, f"{trial.finding}\n{PROGRAMS[name]}"
    assert trial.db["faithful"] > 15


class Functional(nn.Module):
    """Layers that the network calls as functions, with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*s) * 0.3) for s in ((8, 3, 3, 3), (8, 8, 1, 1), (8, 8)))
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.conv2d(F.silu(F.conv2d(x, self.a, padding=1)), self.b)
        return self.last(F.linear(h.movedim(1, -1), self.c).movedim(-1, 1))


def test_functional_layers_have_names_that_rules_can_match():
    example = {"x": torch.randn(2, 3, 6, 6)}
    config = QDiffConfig(rules=(Rule("conv2d#2", weight_bits=4), Rule("lin*", quantize=False)))
    prepared = prepare_qdiff(Functional().eval(), config, example)
    calibrate(prepared, [example], progress=False)
    layers = {row.info.path: row for row in convert_qdiff(prepared).explain()}
    assert set(layers) == {"conv2d", "conv2d[rest]", "conv2d#2", "linear", "last"}
    assert layers["conv2d#2"].info.weight_bits == 4
    assert layers["linear"].reason == "a rule of the configuration keeps it in float"


class Unchanged(Pass):
    """What the first release did about half precision: nothing."""

    name = "unchanged"

    def run(self, gm: Any) -> PassReport:
        return PassReport(self.name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_the_first_release_saved_of_half_precision_runs_natively(dtype, tmp_path, monkeypatch):
    """It computes in half precision, and has casts that nobody reads once layers are lowered."""
    written = program(block("norm"), block("attention"), dtype=dtype)
    with monkeypatch.context() as patched:
        patched.setattr(qdiff_fx.api, ComputeInFloat32.__name__, Unchanged)
        prepared = prepare_qdiff(build(written), QDiffConfig(), call(written, 2))
    batch = call(written, 2)
    calibrate(prepared, [batch], progress=False)
    save_qdiff(convert_qdiff(prepared, "reference"), tmp_path / "saved")
    (native,), (reference,) = (flat(load_qdiff(tmp_path / "saved", name)(**batch)) for name in ("native", "reference"))
    assert native.dtype == reference.dtype == getattr(torch, dtype)
    assert ratio(reference, native) > 25
