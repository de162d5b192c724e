"""Linear layers one after the other, whose weights outweigh all else: for memory that a process of its own measures."""

import subprocess
import sys

import torch

from qdiff_fx import PreparedUNet, QDiffConfig, calibrate, prepare_qdiff

LAYERS, WIDTH = 60, 1448  # weights of 8 MiB in float32 and of 2 MiB in 8-bit codes


class LinearStack(torch.nn.Module):
    def __init__(self, layers: int, width: int):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + timestep[:, None]


def inputs(width: int) -> dict[str, torch.Tensor]:
    return {"x": torch.ones(2, width), "timestep": torch.zeros(2)}


def calibrated(layers: int, width: int, bits: int) -> PreparedUNet:
    config = QDiffConfig(weight_bits=bits, weight_rounding="nearest")
    prepared = prepare_qdiff(LinearStack(layers, width).eval(), config, inputs(width))
    calibrate(prepared, [inputs(width)], progress=False)
    return prepared


def said(program: str, *arguments: object) -> str:
    """What a Python program in a process of its own prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
