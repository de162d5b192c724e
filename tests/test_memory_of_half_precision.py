"""What is in memory while a network of half precision is quantized: its weights as they are."""

import pytest
from linear_stack import LAYERS, WIDTH, said

QUANTIZES = """
import sys
import torch
from benchmarks.memory import peak_rss_bytes
from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff
from tests.linear_stack import LinearStack, inputs

def quantized(layers, width):
    torch.set_default_dtype(getattr(torch, sys.argv[3]))  # no float32 on the way, whose peak would hide all others
    network, given = LinearStack(layers, width).eval(), inputs(width)
    torch.set_default_dtype(torch.float32)
    peaks = [peak_rss_bytes()]
    prepared = prepare_qdiff(network, QDiffConfig(weight_rounding="nearest"), given)
    peaks.append(peak_rss_bytes())
    calibrate(prepared, [given], progress=False)
    peaks.append(peak_rss_bytes())
    network = convert_qdiff(prepared, "reference")
    return [(peak - peaks[0]) / 2**20 for peak in (*peaks[1:], peak_rss_bytes())]

quantized(3, 64)  # what is imported on the way
print(*quantized(int(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_second_copy_of_the_weights_is_made(dtype):
    weights, codes = (LAYERS * WIDTH * WIDTH * size / 2**20 for size in (2, 1))
    prepared, calibrated, converted = map(float, said(QUANTIZES, LAYERS, WIDTH, dtype).split())
    assert prepared < 0.3 * weights
    assert calibrated < 0.4 * weights  # one layer in float32 more, kept for the next
    assert converted < codes + 0.5 * weights
