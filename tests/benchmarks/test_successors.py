"""Ideas from after the paper: what they change, and that they leave the rest alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.paper.noise_statistics import corrected, error_statistics
from benchmarks.paper.smoothing import Smoothed, smoothed
from benchmarks.paper.study import Study
from qdiff_fx.evaluation import eps_sqnr

CUSTOM = Path(__file__).parents[2] / "examples" / "custom_unet.py"


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(str(CUSTOM), steps=5, images=2, backend="reference")


def test_smoothing_leaves_the_function_and_the_network_as_they_were(study):
    unet = study.source.unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    batch = study.data[0]
    other = smoothed(unet, study.data, 0.5)
    changed = {name for name, module in other.named_modules() if isinstance(module, Smoothed)}
    assert "middle.conv1" in changed
    assert not any("shortcut" in name for name in changed)
    with torch.no_grad():
        torch.testing.assert_close(other(**batch), unet(**batch))
    assert all(tensor.equal(before[name]) for name, tensor in unet.state_dict().items())
    assert eps_sqnr(study.quantized(unet=other), study.trajectories[0])[0] > 20


def test_smoothing_levels_an_outlier_channel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            nn.init.constant_(self.conv.weight, 0.1)

        def forward(self, x):
            return self.conv(x)

    x = torch.randn(2, 3, 4, 4) * torch.tensor([1.0, 100.0, 1.0]).reshape(1, 3, 1, 1)
    seen = []
    net = smoothed(Net(), [{"x": x}], 1.0)
    net.conv.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net(x)
    ranges = seen[0].abs().amax((0, 2, 3))
    assert float(ranges.max() / ranges.min()) == pytest.approx(1)


def test_a_systematic_error_is_taken_out_and_comes_back(study):
    network = study.quantized(weight_bits=8)
    walk = study.trajectories[0]
    mean = eps_sqnr(network, walk)

    def spoil(module, args, kwargs, output):
        return output * 1.1 + 0.05

    spoiling = network.register_forward_hook(spoil, with_kwargs=True)
    spoiled = eps_sqnr(network, walk)
    handle = corrected(network, error_statistics(network, walk))
    mended = eps_sqnr(network, walk)
    handle.remove()
    again = eps_sqnr(network, walk)
    spoiling.remove()
    assert max(spoiled) < 20 < min(mean)
    assert again == spoiled
    assert all(after > before - 0.01 for before, after in zip(mean, mended, strict=True))
