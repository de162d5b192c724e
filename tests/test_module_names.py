"""Networks whose modules have names that mean something to Python, to torch or to us."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdiff_fx import QDiffConfig, Rule, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.capture.tensor_names import tensor_name
from qdiff_fx.quant.numerics import sqnr_db

SLOW = pytest.mark.slow
FAITHFUL_DB = 30.0  # measured: 35.5 dB and above


class Chain(nn.Module):
    """Three convolutions, named as asked; `container` puts them one level down."""

    def __init__(self, names: tuple[str, str, str], container: str = ""):
        super().__init__()
        layers = [nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 3, padding=1)]
        owner: nn.Module = nn.Module() if container else self
        if container:
            self.add_module(container, owner)
        for name, layer in zip(names, layers, strict=True):
            owner.add_module(name, layer)
        self.container, self.names = container, names

    def forward(self, sample, timestep):
        owner = getattr(self, self.container) if self.container else self
        first, second, third = (getattr(owner, name) for name in self.names)
        return third(F.silu(second(F.silu(first(sample)))))


def cases():
    """Each name once in `make test`, and with every container otherwise."""
    names = [
        ("0", "1", "10"),
        ("in", "lambda", "class"),
        ("in_", "in", "in__"),
        ("graph_module", "qconfig", "signature"),
        ("graph", "observers", "code"),
        ("timestep_tables", "attention_constants", "layers"),
    ]
    containers = ("", "in", "0", "parameters_of")
    for number, each in enumerate(names):
        for place, container in enumerate(containers):
            quick = place == number % len(containers)
            yield pytest.param(each, container, id=" ".join(each) + f"-{container}", marks=() if quick else SLOW)


@torch.no_grad()
@pytest.mark.parametrize(("names", "container"), cases())
def test_any_name_is_quantized_saved_and_loaded(names, container, tmp_path):
    network = Chain(names, container).eval()
    paths = [f"{container}.{name}" if container else name for name in names]
    example = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 700])}
    config = QDiffConfig(rules=(Rule(paths[1], weight_bits=5),))
    prepared = prepare_qdiff(network, config, example)
    calibrate(prepared, [example], progress=False)
    expected = network(**example)
    assert torch.equal(prepared(**example), expected)
    quantized = convert_qdiff(prepared)
    bits = {row.info.path: row.info.weight_bits for row in quantized.explain()}
    assert [bits[path] for path in paths] == [8, 5, 8]
    assert sqnr_db(expected, quantized(**example)) > FAITHFUL_DB
    loaded = load_qdiff(save_qdiff(quantized, tmp_path / "network"))
    assert torch.equal(loaded(**example), quantized(**example))


@torch.no_grad()
@pytest.mark.parametrize("names", [("0", "1", "2"), ("in", "lambda", "qconfig")], ids=" ".join)
def test_torch_ao_takes_them_too(names):
    network = Chain(names).eval()
    example = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(3)}
    prepared = prepare_qdiff(network, QDiffConfig(act_granularity="tensor"), example, backend="x86")
    calibrate(prepared, [example], progress=False)
    quantized = convert_qdiff(prepared, "x86")
    assert all(row.integer for row in quantized.explain())
    assert sqnr_db(network(**example), quantized(**example)) > FAITHFUL_DB


def test_ordinary_names_stay():
    assert tensor_name("down_blocks.0.conv.weight") == "down_blocks.0.conv.weight"
    assert tensor_name("mix.in.weight") == "mix.in_.weight"
    assert tensor_name("graph.weight") == "graph_.weight"
    assert tensor_name("blocks.graph.weight") == "blocks.graph.weight"
