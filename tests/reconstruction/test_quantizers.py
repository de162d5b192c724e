"""The quantizer that is learned through: against torch's own, which takes longer."""

import pytest
import torch

from qdiff_fx.quant.qparams import QParams, TensorSpec
from qdiff_fx.quant.timestep_bins import TimestepBins
from qdiff_fx.reconstruction.quantizers import ActivationQuantizer, Switch

SCALES, ZEROS = (0.02, 0.05, 0.1), (128, 100, 7)
TIMESTEP = torch.tensor([900.0, 20.0, 500.0, 10.0])


def quantizer():
    return ActivationQuantizer(QParams(TensorSpec(8), SCALES, ZEROS), Switch(activations=True), TimestepBins(1000, 3))


def image(dtype=torch.float32):
    """Some of it clips."""
    x = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0)) * 4
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("learning", [False, True])
def test_values_and_gradients_are_those_of_torch(learning):
    each, x, other = quantizer(), image(), image()
    each.log_factor.requires_grad_(learning)
    found = each(x, TIMESTEP)
    scales = torch.tensor(SCALES)[[2, 0, 1, 0]].requires_grad_()
    zeros = torch.tensor(ZEROS)[[2, 0, 1, 0]]
    expected = torch._fake_quantize_learnable_per_channel_affine(other, scales, zeros.float(), 0, 0, 255, 1.0)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, other.grad)
    assert 0.0 < (x.grad == 0).float().mean() < 0.9
    if learning:  # by the logarithm of a factor, which rows of the same bin share
        by_log = torch.zeros(3).index_add(0, torch.tensor([2, 0, 1, 0]), (scales.grad * scales).detach())
        torch.testing.assert_close(each.log_factor.grad, by_log, rtol=1e-4, atol=1e-3)


def test_it_stays_in_the_dtype_and_layout_it_is_given():
    found = quantizer()(image(torch.bfloat16), TIMESTEP)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_switched_off_it_changes_nothing():
    each, x = quantizer(), image()
    each.switch.set(weights=True, activations=False)
    assert each(x, TIMESTEP) is x
