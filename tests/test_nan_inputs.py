"""NaN given to a quantized network is said to be there; codes would hide it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.errors import InputError

X, T, C = torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), torch.randn(2, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.embed = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Linear(3, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(sample) + self.embed(condition)[:, :, None, None]))


@pytest.fixture(scope="module")
def network():
    inputs = {"sample": X, "timestep": T, "condition": C}
    prepared = prepare_qdiff(Net().eval(), QDiffConfig(timestep_bins=1), inputs)
    calibrate(prepared, [inputs], progress=False)
    return prepared


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nan_is_refused_by_the_name_of_its_argument(network, backend):
    quantized = convert_qdiff(network, backend)
    assert quantized(X, T, C).isfinite().all()
    for name, position in (("sample", 0), ("condition", 2)):
        arguments = [X, T, C]
        arguments[position] = arguments[position].clone()
        arguments[position].view(-1)[7 % arguments[position].numel()] = torch.nan
        with pytest.raises(InputError, match=f"argument '{name}': it holds NaN"):
            quantized(*arguments)


def test_infinities_of_both_signs_are_no_nan(network):
    """A mask may hold them; that their sum is NaN says nothing."""
    spread = X.clone()
    spread.view(-1)[0], spread.view(-1)[1] = torch.inf, -torch.inf
    assert convert_qdiff(network, "reference")(spread, T, C).isfinite().all()
