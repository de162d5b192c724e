"""Round a weight so that the layer's output, not the weight, changes least: error feedback in a Cholesky order.

For one output channel w [K] and inputs x with Hessian H = E[x xᵀ] the output changes by
`E[((w - ŵ)ᵀ x)²] = ‖(w - ŵ)ᵀ R‖²` where `H = R Rᵀ`, R upper triangular. Entry j of that vector holds the errors of
columns 0..j, so columns are rounded one after the other, each making up for those before it. This is what OBQ and
GPTQ (Frantar et al., arXiv 2210.17323) do, in the form of Babai's nearest plane, which needs no inverse of H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.errors import ConversionError

BLOCK = 128  # columns whose feedback on later ones is added by one product
DAMPINGS = (0.01, 0.1, 1.0)  # of the mean of the diagonal; the first under which H is positive definite


@dataclass(frozen=True)
class HessianFactor:
    """`H + damping = R Rᵀ` with the columns in `order`.

    Attributes:
        order: int64 [K], columns of the weight, the most excited first.
        feedback: float32 [K, K], upper triangular: column j of R by its diagonal entry.
        diagonal: float32 [K], of R.
    """

    order: Tensor
    feedback: Tensor
    diagonal: Tensor


def factorise(hessian: Tensor, *, where: str = "") -> HessianFactor:
    """The factor of a Hessian, float32 [K, K], symmetric, at least positive semidefinite; it is overwritten.

    Raises:
        ConversionError: it is not finite.
    """
    diagonal = hessian.diagonal()
    if not bool(hessian.sum().isfinite()):
        raise ConversionError("the Hessian of its inputs is not finite", where=where)
    # Ascending here: the Cholesky factor of the reversed matrix, reversed, is the upper triangular one.
    backwards = diagonal.argsort()
    reversed_hessian = hessian[backwards][:, backwards]
    step = float(diagonal.mean()) or 1.0
    damped = 0.0
    for damping in DAMPINGS:
        reversed_hessian.diagonal().add_((damping - damped) * step)
        damped = damping
        lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
        if not int(failed):
            break
    else:
        raise ConversionError("the Hessian of its inputs is not positive definite", where=where)
    upper = lower.flip(0, 1)
    ends = upper.diagonal().clone()
    return HessianFactor(backwards.flip(0), upper.div_(ends), ends)


def feedback_codes(
    weight: Tensor, scales: Tensor, factor: HessianFactor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """Codes of a weight under given scales, and what they do to the output.

    Args:
        weight: float32 [O, K].
        scales: float32 [O].
        factor: of the inputs' Hessian, K columns.
    Returns:
        codes, int8 [O, K]; the mean square error of every output channel, float32 [O] (that of the damped Hessian).
    """
    steps = (weight / scales[:, None]).T[factor.order]  # [K, O]: what is rounded together lies together
    target, codes = steps.clone(), torch.empty_like(steps)
    error = torch.zeros_like(scales)
    for start in range(0, len(steps), BLOCK):
        columns, rest = slice(start, start + BLOCK), slice(start + BLOCK, None)
        block, chosen = target[columns], codes[columns]
        within = factor.feedback[columns, columns]
        for index in range(len(block)):
            torch.round(block[index], out=chosen[index]).clamp_(qmin, qmax)
            block[index + 1 :].addr_(within[index, index + 1 :], steps[start + index] - chosen[index])
        error += ((block - chosen) * factor.diagonal[columns, None]).square_().sum(0)
        target[rest].addmm_(factor.feedback[columns, rest].T, steps[columns] - chosen)
    result = torch.empty(codes.shape, dtype=torch.int8)
    result[factor.order] = codes.to(torch.int8)
    return result.T.contiguous(), error * scales.square()
