"""The quantized network as its user meets it."""

import pytest
import torch
from tiny_graphs import Shortcut, alike, prepared, reference_for
from torch import nn

from qdiff_fx import QDiffConfig, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.errors import InputError
from qdiff_fx.kernels.running import attention_kernel_name
from qdiff_fx.signature import CallSignature

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


class WithoutBatch(nn.Module):
    """An input of one number per channel, and outputs that have no batch dimension."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, t, gains, mean=False):
        shifted = x + t[:, None, None, None] / 1000
        result = self.conv(shifted) * gains[:, None, None]
        return {"sample": result, "power": result.square().mean() if mean else gains.sum(), "gains": gains * 2}


GAINS = torch.tensor([1.0, 2.0, 3.0, 4.0])
IMAGES = torch.linspace(-2, 3, 4 * 4 * 64).reshape(4, 4, 8, 8)


def quantized_without_batch(**constants):
    """Captured with a batch of two, in which the four gains cannot be taken for samples."""
    torch.manual_seed(0)
    example = {"x": IMAGES[:2], "t": T[:2], "gains": GAINS, **constants}
    network = prepare_qdiff(WithoutBatch().eval(), QDiffConfig(**alike({}), timestep_bins=10), example)
    with torch.no_grad():
        network(IMAGES, T, GAINS, **constants)
    return convert_qdiff(network, "reference")


def check_without_batch(quantized):
    together = quantized(IMAGES, T, GAINS)
    alone = torch.cat([quantized(IMAGES[i : i + 1], T[i : i + 1], GAINS)["sample"] for i in range(4)])
    torch.testing.assert_close(together["sample"], alone, rtol=1e-5, atol=1e-5)
    assert together["power"].shape == ()
    assert together["power"] == 10
    assert torch.equal(together["gains"], 2 * GAINS)


def test_what_has_no_batch_dimension_is_not_cut_by_bins(tmp_path):
    quantized = quantized_without_batch()
    assert quantized.signature.batched_outputs == (True, False, False)
    check_without_batch(quantized)
    save_qdiff(quantized, tmp_path / "saved")
    check_without_batch(load_qdiff(tmp_path / "saved", "reference"))


def test_a_signature_of_the_first_release_does_not_know_which_outputs_have_a_batch():
    """It is seen from the sizes: what has as many rows as there were in each bin."""
    quantized = quantized_without_batch()
    known = quantized.signature.to_json()
    del known["batched_outputs"]
    quantized.signature = CallSignature.from_json(known)
    assert quantized.signature.batched_outputs is None
    check_without_batch(quantized)


def test_a_signature_says_of_every_output_whether_it_has_a_batch():
    known = quantized_without_batch().signature.to_json()
    with pytest.raises(ValueError, match="1 batched_outputs for the 3 tensors"):
        CallSignature.from_json(known | {"batched_outputs": [True]})


def test_an_output_of_the_whole_batch_cannot_be_put_together_from_bins():
    quantized = quantized_without_batch(mean=True)
    assert quantized(IMAGES, 20, GAINS, mean=True)["power"].shape == ()
    with pytest.raises(InputError, match=r"power.*no batch dimension.*one bin"):
        quantized(IMAGES, T, GAINS, mean=True)


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
