r"""Transposed and grouped convolutions and those of volumes, on integers and in float32, which decides what is taken.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/kernels/bench_other_convolutions.py \
        --benchmark-timer=time.process_time --benchmark-group-by=group --benchmark-columns=min,median

What runs on integers begins by quantizing its input, and ends in float32.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdiff_fx import QDiffConfig, convert_qdiff, prepare_qdiff
from qdiff_fx.kernels import status

# batch, height and width of images, or of 16 frames, and the layer
LAYERS = {
    "transposed, 2, stride 2, 320 to 320": (2, 32, nn.ConvTranspose2d(320, 320, 2, 2)),
    "transposed, 2, stride 2, 1536 to 768": (1, 8, nn.ConvTranspose2d(1536, 768, 2, 2)),
    "transposed, 4, stride 2, 128 to 128": (2, 32, nn.ConvTranspose2d(128, 128, 4, 2, 1)),
    "transposed, 4, stride 2, 256 to 256": (2, 16, nn.ConvTranspose2d(256, 256, 4, 2, 1)),
    "transposed, 3, stride 2, 64 to 64": (2, 32, nn.ConvTranspose2d(64, 64, 3, 2, 1)),
    "256, 2 groups": (2, 32, nn.Conv2d(256, 256, 3, padding=1, groups=2)),
    "256, 8 groups": (2, 32, nn.Conv2d(256, 256, 3, padding=1, groups=8)),
    "256, 16 groups": (2, 32, nn.Conv2d(256, 256, 3, padding=1, groups=16)),
    "256, 32 groups": (2, 32, nn.Conv2d(256, 256, 3, padding=1, groups=32)),
    "1280 by themselves": (2, 24, nn.Conv2d(1280, 1280, 3, padding=1, groups=1280)),
    "along time, 320": (1, 32, nn.Conv3d(320, 320, (3, 1, 1), padding=(1, 0, 0))),
    "of volumes, 64": (1, 32, nn.Conv3d(64, 64, 3, padding=1)),
}


@pytest.mark.skipif(not status().available, reason=status().reason or "-")
@pytest.mark.parametrize("bits", ["float", 8, 4])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_layer(benchmark, name, bits):
    batch, size, layer = LAYERS[name]
    benchmark.group = name
    torch.manual_seed(0)
    volume = isinstance(layer, nn.Conv3d)
    x = torch.randn(batch, layer.in_channels, *([16] if volume else []), size, size)
    x = x.contiguous(memory_format=torch.channels_last_3d if volume else torch.channels_last)
    if bits == "float":
        benchmark(nn.Sequential(layer).eval(), x)
        return
    config = QDiffConfig(weight_bits=bits, edge_weight_bits=2, sample_act_bits=8)
    network = prepare_qdiff(nn.Sequential(layer).eval(), config, {"input": x})
    network(x)
    quantized = convert_qdiff(network, "native")
    benchmark(quantized._run[0], x)
