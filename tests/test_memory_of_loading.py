"""What is in memory once a network is loaded: its weights, packed, once; and while it is: little more."""

import pytest
from linear_stack import LAYERS, WIDTH, said

SAVES = """
import sys
from qdiff_fx import convert_qdiff, save_qdiff
from tests.linear_stack import calibrated

folder, layers, width, bits = sys.argv[1:]
save_qdiff(convert_qdiff(calibrated(int(layers), int(width), int(bits)), "reference"), folder)
"""
LOADS = """
import sys
import torch
from benchmarks.memory import peak_rss_bytes
from qdiff_fx import load_qdiff

def run(folder, width):
    before = peak_rss_bytes()
    network = load_qdiff(folder)
    network(x=torch.ones(2, width), timestep=torch.zeros(2))
    return peak_rss_bytes() - before

small, large, width = sys.argv[1:]
run(small, 64)
print(run(large, int(width)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_loaded_network_holds_its_weights_once(bits, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    said(SAVES, small, 3, 64, 8)
    said(SAVES, large, LAYERS, WIDTH, bits)
    weights = LAYERS * WIDTH * WIDTH * bits / 8
    # The small one has brought all modules. A second copy of the weights would be as much again as the first.
    assert weights < int(said(LOADS, small, large, WIDTH)) < weights + (48 << 20)
