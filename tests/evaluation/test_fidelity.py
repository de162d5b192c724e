"""SQNR and PSNR against their definitions."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import examples
from qdiff_fx.errors import InputError
from qdiff_fx.evaluation import eps_sqnr, images_psnr_db, psnr_db, sqnr_db, trajectory


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@examples(25)
@given(ratio=st.floats(1e-4, 10), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_sqnr_of_a_relative_error(ratio: float, scale: float, seed: int) -> None:
    signal = draw(3, 5, seed=seed).double() * scale
    assert sqnr_db(signal, signal * (1 + ratio)) == pytest.approx(-20 * math.log10(ratio), abs=1e-6)


def test_sqnr_weighs_energy_not_elements() -> None:
    signal = torch.tensor([10.0, 1.0])
    error = torch.tensor([0.0, 1.0])
    assert sqnr_db(signal, signal + error) == pytest.approx(10 * math.log10(101))


def test_sqnr_of_equal_tensors_is_infinite() -> None:
    assert sqnr_db(draw(4), draw(4)) == math.inf
    assert sqnr_db(torch.zeros(4), torch.zeros(4)) == math.inf
    assert math.isnan(sqnr_db(draw(4), torch.full((4,), torch.nan)))


def test_psnr_counts_the_range_from_minus_one_to_one_as_one() -> None:
    reference = torch.zeros(2, 1, 4, 4)
    assert psnr_db(reference + 0.2, reference) == pytest.approx(20)


def test_psnr_clamps_what_no_image_can_show() -> None:
    reference = torch.ones(1, 1, 4, 4)
    assert psnr_db(reference + 3, reference) == math.inf


def test_psnr_is_averaged_over_images_in_db() -> None:
    reference = torch.zeros(2, 1, 2, 2)
    images = reference + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    assert images_psnr_db(images, reference).tolist() == pytest.approx([20, 40])
    assert psnr_db(images, reference) == pytest.approx(30)


@pytest.mark.parametrize("measure", [sqnr_db, psnr_db])
def test_shapes_must_agree(measure) -> None:
    with pytest.raises(InputError, match=r"\(1, 1, 2, [23]\) and \(1, 1, 2, [23]\) differ"):
        measure(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3))


class Net(nn.Module):
    def __init__(self, error: float = 0.0):
        super().__init__()
        self.error = error

    def forward(self, sample, timestep):
        return 0.3 * sample * (1 + self.error * (timestep < 50))


def test_eps_sqnr_is_measured_on_the_float_networks_inputs_step_by_step() -> None:
    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(4)
    walked = trajectory(Net(), scheduler, draw(2, 1, 4, 4))
    measured = eps_sqnr(Net(error=0.1), walked)
    late = [int(step.timestep) < 50 for step in walked.steps]
    assert any(late)
    assert not all(late)
    # Errors do not accumulate: each step is 20 dB or exact, whatever happened before.
    expected = [pytest.approx(20, abs=1e-4) if is_late else math.inf for is_late in late]
    assert measured == expected
