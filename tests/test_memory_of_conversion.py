"""What is in memory while a network is converted: its weights, its codes, and one layer's temporaries."""

import subprocess
import sys

import pytest

LAYERS, WIDTH = 60, 1448  # weights of 8 MiB in float32 and of 2 MiB in codes
CONVERTS = """
import sys
from pathlib import Path
import torch
from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff

class Net(torch.nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
    def forward(self, x, timestep):
        for layer in self.layers:
            x = layer(x)
        return x + timestep[:, None]

def peak():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024

def converted(layers, width):
    inputs = {"x": torch.randn(2, width), "timestep": torch.zeros(2)}
    config = QDiffConfig(weight_bits=int(sys.argv[3]), weight_rounding="nearest")
    prepared = prepare_qdiff(Net(layers, width).eval(), config, inputs)
    calibrate(prepared, [inputs], progress=False)
    before = peak()
    network = convert_qdiff(prepared, "reference")
    return peak() - before

converted(3, 64)  # what is imported on the way
print(converted(int(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_conversion_takes_the_codes_and_one_layer(bits):
    arguments = [str(each) for each in (LAYERS, WIDTH, bits)]
    done = subprocess.run([sys.executable, "-c", CONVERTS, *arguments], capture_output=True, text=True, check=True)
    codes = LAYERS * WIDTH * WIDTH / 2**20
    assert codes < float(done.stdout) < codes + 80  # MiB; a second copy of the codes alone would be more
