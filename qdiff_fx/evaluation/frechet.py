"""Fréchet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500, equation 6)."""

from __future__ import annotations

import torch

from qdiff_fx.errors import InputError


def frechet_distance(features_a: torch.Tensor, features_b: torch.Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets, (N, D) and (M, D).

    ``|μa − μb|² + tr Ca + tr Cb − 2 tr (Ca Cb)^½`` in float64. With centred features A and B,
    ``tr (AᵀA BᵀB)^½`` is the sum of the singular values of ``A Bᵀ``: no matrix square root, and exact when
    there are fewer samples than features. Few samples bias the estimate upwards: compare only equal N and M.

    Raises:
        InputError: if the sets are not matrices of one width with at least two rows each.
    """
    _check(features_a, features_b)
    mean_a, root_a = _gaussian(features_a)
    mean_b, root_b = _gaussian(features_b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def _gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and a root R (min(N, D), D) of the covariance: ``RᵀR = C``."""
    features = features.double()
    mean = features.mean(0)
    centred = (features - mean) / (features.shape[0] - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


def _check(features_a: torch.Tensor, features_b: torch.Tensor) -> None:
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if features.ndim != 2 or features.shape[0] < 2:
            raise InputError(f"shape {tuple(features.shape)} is not (N, D) with N of at least 2", where=name)
    if features_a.shape[1] != features_b.shape[1]:
        raise InputError(
            f"{features_a.shape[1]} and {features_b.shape[1]} features per sample differ",
            where="features",
            fix="Take both from the same feature extractor",
        )
