"""What is in memory once a network is loaded: its weights, packed, once; and while it is: little more."""

import subprocess
import sys

import pytest

LAYERS, WIDTH = 60, 1448  # weights of 2 MiB in 8-bit codes
PROGRAM = """
import sys
import torch
from benchmarks.memory import peak_rss_bytes
from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff

class Net(torch.nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
    def forward(self, x, timestep):
        for layer in self.layers:
            x = layer(x)
        return x + timestep[:, None]

def inputs(width):
    return {"x": torch.ones(2, width), "timestep": torch.zeros(2)}

def save(folder, layers, width, bits):
    config = QDiffConfig(weight_bits=bits, weight_rounding="nearest")
    prepared = prepare_qdiff(Net(layers, width).eval(), config, inputs(width))
    calibrate(prepared, [inputs(width)], progress=False)
    save_qdiff(convert_qdiff(prepared, "reference"), folder)

def run(folder, width):
    before = peak_rss_bytes()
    network = load_qdiff(folder)
    network(**inputs(width))
    return peak_rss_bytes() - before
"""
SAVES = f"save(sys.argv[1] + '/large', {LAYERS}, {WIDTH}, int(sys.argv[2])); save(sys.argv[1] + '/small', 3, 64, 8)"
LOADS = f"run(sys.argv[1] + '/small', 64); print(run(sys.argv[1] + '/large', {WIDTH}))"


def said(program, *arguments):
    command = [sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_loaded_network_holds_its_weights_once(bits, tmp_path):
    said(SAVES, tmp_path, bits)
    weights = LAYERS * WIDTH * WIDTH * bits / 8
    # The small one has brought all modules. A second copy of the weights would be as much again as the first.
    assert weights < int(said(LOADS, tmp_path)) < weights + (48 << 20)
