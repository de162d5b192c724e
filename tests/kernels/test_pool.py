"""Memory of results: pieces wait for their next use, but not for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qdiff_fx.kernels import status

MB = 1 << 20
pytestmark = [
    pytest.mark.skipif(not status().available, reason=status().reason or "-"),
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc"),
]

# Results of growing sizes, one at a time, as a decoder makes them.
PROGRAM = """
import torch
from qdiff_fx.kernels import status
assert status().available
def resident(what):
    found = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(found[what].split()[0]) * 1024
x = torch.zeros(100 << 20, dtype=torch.float16)
quantize = lambda n: torch.ops.qdiff.act_quantize(x[: n << 20], 0, torch.uint8, 1.0, 0, 0, 255)
quantize(1)
before = resident("VmRSS")
for size in range(20, 100, 8):
    quantize(size)
print(resident("VmHWM") - before, resident("VmRSS") - before)
"""


def test_pieces_of_small_images_are_gone_when_large_ones_come() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    peak, resident = map(int, done.stdout.split())
    together = sum(range(20, 100, 8)) * MB  # 560 MB
    assert max(peak, resident) < 280 * MB <= together / 2


@pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped on Linux")
def test_large_results_begin_at_a_large_page() -> None:
    x = torch.zeros(3 * MB)
    found = [torch.ops.qdiff.act_quantize(x, 0, torch.uint8, 1.0, 0, 0, 255) for _ in range(3)]
    assert [each.data_ptr() % (2 * MB) for each in found] == [0, 0, 0]
    assert all(int(each.max()) == 0 for each in found)
