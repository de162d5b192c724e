"""What is in memory once a network is loaded: its weights, packed, once; and while it is: little more."""

import sys

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


LEAVES = """
import sys
import torch
from benchmarks.memory import resident_rss_bytes
from qdiff_fx import load_qdiff

folder, width, megabytes = sys.argv[1:]
network = load_qdiff(folder)
# What a pipeline's other parts leave behind when they are read in one type and kept in another.
pieces = [bytes(96 << 10) for _ in range(int(megabytes) * 1024 // 96)]
kept = pieces[::64]
del pieces
before = resident_rss_bytes()
network(x=torch.ones(2, int(width)), timestep=torch.zeros(2))
print(before - resident_rss_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries keep less of what was freed")
def test_memory_freed_since_it_was_loaded_goes_back_at_the_first_call(tmp_path):
    said(SAVES, tmp_path / "small", 3, 64, 8)
    assert int(said(LEAVES, tmp_path / "small", 64, 256)) > 128 << 20
