"""The Fréchet distance against its closed forms, and against the matrix square root it avoids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import InputError
from qdiff_fx.evaluation import frechet_distance


def draw(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_square_root(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The textbook formula, through symmetric eigendecompositions."""

    def root(matrix: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T

    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    cross = root(root(cov_a) @ cov_b @ root(cov_a))
    return (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross.trace()


def test_identical_sets_are_at_distance_zero() -> None:
    features = draw(20, 6, seed=0)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)


def test_a_translation_costs_its_squared_length() -> None:
    features, shift = draw(20, 3, seed=0), torch.tensor([1.0, -2.0, 2.0])
    assert frechet_distance(features, features + shift) == pytest.approx(9)


def test_a_scaling_costs_the_difference_of_deviations() -> None:
    features = draw(50, 4, seed=0)
    features -= features.mean(0)
    assert frechet_distance(features, 3 * features) == pytest.approx(4 * float(features.var(0).sum()))


def test_one_dimensional_gaussians() -> None:
    a, b = draw(30, 1, seed=1), 2 * draw(40, 1, seed=2) + 5
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(float(expected))


@examples(30)
@given(rows_a=st.integers(3, 40), rows_b=st.integers(3, 40), columns=st.integers(2, 12), seed=st.integers(0, 999))
def test_agrees_with_the_matrix_square_root(rows_a: int, rows_b: int, columns: int, seed: int) -> None:
    a = draw(rows_a, columns, seed) @ draw(columns, columns, seed + 1)
    b = draw(rows_b, columns, seed + 2) + 0.5
    # The square root loses half the digits on rank-deficient covariances; ours does not.
    assert frechet_distance(a, b) == pytest.approx(float(with_square_root(a, b)), rel=1e-5, abs=1e-5)


@examples(20)
@given(rows=st.integers(2, 20), columns=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_symmetric_and_blind_to_rotation(rows: int, columns: int, seed: int) -> None:
    a, b = draw(rows, columns, seed), 2 * draw(rows + 3, columns, seed + 1)
    rotation = torch.linalg.qr(draw(columns, columns, seed + 2)).Q
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-9, abs=1e-9)


def test_single_precision_features_are_widened() -> None:
    a, b = draw(30, 5, seed=1).float() * 1e3, draw(30, 5, seed=2).float() * 1e3
    assert frechet_distance(a, b) == frechet_distance(a.double(), b.double())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), "features_a"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 1), "features_b"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "same feature extractor"),
    ],
)
def test_refuses_what_has_no_covariance(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        frechet_distance(a, b)
