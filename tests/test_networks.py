"""The quantized network as its user meets it."""

import pytest
import torch
from tiny_graphs import Shortcut, prepared, reference_for

from qdiff_fx import convert_qdiff
from qdiff_fx.errors import InputError
from qdiff_fx.kernels.running import attention_kernel_name

X = torch.linspace(-2, 3, 4 * 3 * 64).reshape(4, 3, 8, 8)
T = torch.tensor([900.0, 20.0, 480.0, 20.0])


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    return convert_qdiff(prepared(Shortcut(), X, T, timestep_bins=10), "reference")


def test_timesteps_of_several_bins_in_one_batch_are_computed_as_if_alone(quantized):
    together = quantized(X, T)
    alone = torch.cat([quantized(X[i : i + 1], T[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    # One row of the table for everybody would not have given the same.
    shared = quantized._run[0](X, T)[0]
    assert (shared - alone).abs().max() > 1e-3


def test_a_single_timestep_serves_the_whole_batch(quantized):
    torch.testing.assert_close(quantized(X, 20), quantized(X, torch.full((4,), 20.0)))


def test_no_gradient_is_recorded(quantized):
    assert not quantized(X.clone().requires_grad_(), T).requires_grad


def test_the_same_network_on_another_backend(quantized):
    other = quantized.with_backend("inductor", compile=False)
    assert (quantized.backend, other.backend) == ("reference", "inductor")
    expected = quantized.with_backend("reference", reference_for("inductor"))(X, 20)
    actual = other(X, 20)
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 45
    assert len(other.explain()) == len(quantized.explain()) == 10
    assert {row.kernel for row in other.explain()} == {
        "onednn::qconv_pointwise",
        "onednn::qlinear_pointwise",
        attention_kernel_name(8),
    }


def test_bf16_between_integer_operations_stays_close(quantized):
    other = quantized.with_backend("inductor", compute_dtype=torch.bfloat16, compile=False)
    expected, actual = quantized(X, 20), other(X, 20)
    assert actual.dtype == torch.float32
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 25


def test_output_quantizers_cost_quality_and_give_up_the_tables(quantized):
    float_net = Shortcut().eval()
    network = prepared(float_net, X, T, timestep_bins=10)
    plain = convert_qdiff(network, "reference")
    coarse = convert_qdiff(network, "reference", output_quantizers=True)
    target = float_net(X, T)
    assert (coarse(X, T) - target).norm() > (plain(X, T) - target).norm()


def test_a_wrong_call_names_the_argument(quantized):
    with pytest.raises(InputError, match="x"):
        quantized(X[:, :2], T)
