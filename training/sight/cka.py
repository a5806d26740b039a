"""How alike two sets of features are, whatever their bases: linear centred kernel alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_align_ros.errors import TrainingError


def linear_cka(one: Tensor, other: Tensor, *, debiased: bool = True) -> float:
    """Linear CKA of features (n, d) and (n, e) of the same n things; 1 is equal up to a rotation.

    Kornblith et al. 2019 (arXiv 1905.00414), in float64. With fewer rows than columns the plain
    estimate is near 1 for any two matrices; `debiased` uses the unbiased estimator of HSIC (Song et
    al. 2012, as Nguyen et al. 2021 do, arXiv 2010.15327), which is near 0 for unrelated ones and
    may fall slightly below. Features that do not vary have no likeness: nan.

    Raises:
        TrainingError: on other shapes, or fewer than 4 rows.
    """
    if one.ndim != 2 or other.ndim != 2 or len(one) != len(other) or len(one) < 4:
        raise TrainingError(
            "Features cannot be compared",
            got=f"{tuple(one.shape)} and {tuple(other.shape)}",
            expected="(n, d) and (n, e) with the same n, at least 4",
            fix="compare features of the same pictures",
        )
    x, y = _gram(one), _gram(other)
    hsic = _unbiased_hsic if debiased else _biased_hsic
    both = hsic(x, x) * hsic(y, y)
    if not both > 0.0:  # constant features, or so few rows that their own estimate is negative
        return float("nan")
    return float(hsic(x, y) / both.sqrt())


def _gram(features: Tensor) -> Tensor:
    centred = features.detach().double().cpu()
    centred = centred - centred.mean(0)
    scale = centred.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    centred = centred / scale  # so that products of large features neither overflow nor vanish
    return centred @ centred.T


def _biased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Sum of products of centred Gram matrices; the factor cancels in CKA."""
    return (x * y).sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Equation 5 of Song et al. 2012, without the factor that cancels in CKA."""
    n = len(x)
    x, y = x - torch.diag(x.diagonal()), y - torch.diag(y.diagonal())
    rows = (x.sum(1) * y.sum(1)).sum()
    return (x * y).sum() + x.sum() * y.sum() / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
