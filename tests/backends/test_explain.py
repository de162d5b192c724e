"""`explain()` names what runs, read from the lowered graph; brackets stay readable, and each layer counts once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_graphs import Plain, Shortcut, prepared
from torch import nn

from qdiff_fx import QuantizedUNet, convert_qdiff
from qdiff_fx.backends.common.explanation import Explanation
from qdiff_fx.kernels import status

X, T = torch.randn(2, 3, 8, 8), torch.tensor([500, 500])
PLAIN = "plain torch"
HERE = status().kernel if status().available else PLAIN


def network(backend: str = "native", net: nn.Module | None = None, **config) -> QuantizedUNet:
    torch.manual_seed(0)
    inputs = (X, T) if net is None else (X,)
    return convert_qdiff(prepared(net or Shortcut(), *inputs, **config), backend)


def kernels(explanation: Explanation) -> dict[str, str]:
    return {row.info.path: row.kernel for row in explanation}


def test_kernels_are_named_with_their_instructions():
    assert set(kernels(network().explain()).values()) == {
        f"qdiff::{name} ({HERE})" for name in ("int_conv", "int_linear", "int_attention")
    }


@pytest.mark.parametrize("backend", ["native", "inductor"])
def test_probabilities_of_16_bits_run_in_plain_torch(backend):
    found = network(backend, softmax_bits=16).explain()
    assert {row.kernel for row in found if row.info.kind == "attention"} == {f"qdiff::int_attention ({PLAIN})"}
    assert all(row.integer for row in found)


def forced(kernel: str) -> str:
    """What another process prints where the kernels are forced."""
    code = "import test_explain as t; print(*sorted(set(t.kernels(t.network().explain()).values())), sep='\\n')"
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), str(tests / "backends")])
    environment = os.environ | {"QDIFF_KERNELS": kernel, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_forced_reference_is_named():
    assert forced("reference").splitlines() == [
        f"qdiff::{name} ({PLAIN})" for name in ("int_attention", "int_conv", "int_linear")
    ]


def test_every_row_has_a_kernel_wherever_its_layer_went():
    """Merged into another layer's kernel, and moved out of the graph because it depends on the timestep alone."""
    explanation = network(sample_act_bits=16).explain()
    assert [path for path in kernels(explanation) if path.endswith("]")]
    assert all(kernel.endswith(f"({HERE})") for kernel in kernels(explanation).values())


def test_what_a_kernel_does_beside_its_layer_is_noted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.b(nn.functional.silu(self.a(x)))

    first, second = network(net=Net()).explain()
    assert first.notes == ("its kernel also does: silu, quantizes its result",)
    assert second.notes == ()


def test_what_is_noted_is_shown_on_demand():
    rows = network().explain().rows
    assert "its kernel also does" not in " ".join(str(Explanation("native", rows)).split())
    assert "its kernel also does" in " ".join(str(Explanation("native", rows, verbose=True)).split())


def test_a_path_in_brackets_stays_readable():
    explanation = network("reference", Plain(nn.Conv2d(3, 8, 3)), sample_act_bits=16).explain()
    assert "[rest]" in str(explanation)


def test_a_layer_is_counted_once():
    halves = network("reference", Plain(nn.Conv2d(3, 8, 3)), sample_act_bits=16).explain()
    assert len(halves) == 2
    assert halves.counts == (1, 0)
    assert "1 layers on integers, 0 in float" in str(halves)


def test_a_layer_half_in_float_counts_as_float():
    rows = network("reference", Plain(nn.Conv2d(3, 8, 3)), sample_act_bits=16).explain().rows
    assert Explanation("reference", (rows[0], replace(rows[1], reason="some"))).counts == (0, 1)
