"""What is in memory while a network is converted: its weights, its codes, and one layer's temporaries."""

import pytest
from linear_stack import LAYERS, WIDTH, said

CONVERTS = """
import sys
from benchmarks.memory import peak_rss_bytes
from qdiff_fx import convert_qdiff
from tests.linear_stack import calibrated

def converted(layers, width):
    prepared = calibrated(layers, width, int(sys.argv[3]))
    before = peak_rss_bytes()
    network = convert_qdiff(prepared, "reference")
    return (peak_rss_bytes() - before) / 2**20

converted(3, 64)  # what is imported on the way
print(converted(int(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_conversion_takes_the_codes_and_one_layer(bits):
    codes = LAYERS * WIDTH * WIDTH / 2**20
    assert (
        codes < float(said(CONVERTS, LAYERS, WIDTH, bits)) < codes + 80
    )  # MiB; a second copy of the codes alone would be more
