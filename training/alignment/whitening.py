"""Whitening by running statistics that every rank and every resumed run shares."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.05  # weight of the newest batch
SHRINKAGE = 1e-3  # share of the identity, times the mean variance, in the covariance
SMALLEST_VARIANCE = 1e-6  # so that equal tokens stay finite


class RunningWhitening(nn.Module):
    """y = L^-1 (x - mean) with L L^T the covariance of recent tokens (its Cholesky factor).

    Mean and covariance are exponential averages over batches in train mode (the first batch sets
    them) and constants to the gradient. Batches smaller than the width are no trouble: the averages
    remember, and a share of the identity keeps the covariance regular. With torch.distributed the
    moments are those of all ranks' tokens, so every rank whitens alike. Everything is in the state
    dict.
    """

    mean: Tensor
    covariance: Tensor
    batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, device="cpu"))
        self.register_buffer("covariance", torch.eye(width, device="cpu"))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten float32 (B, k, width) over the channels."""
        if self.training:
            self._observe(x.detach().flatten(0, -2))
        whitened: Tensor = (x - self.mean) @ self.matrix().mT
        return whitened

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """L^-1 (width, width) float32, computed in float64."""
        covariance = self.covariance.double()
        unit = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        scale = covariance.diagonal().mean().clamp(min=SMALLEST_VARIANCE)
        shrunk = (1.0 - SHRINKAGE) * covariance + SHRINKAGE * scale * unit
        factor, _ = torch.linalg.cholesky_ex(shrunk)  # of non-finite tokens: the loss tells
        inverse: Tensor = torch.linalg.solve_triangular(factor, unit, upper=False)
        return inverse.float()

    @torch.no_grad()
    def _observe(self, tokens: Tensor) -> None:
        mean, covariance = _moments(tokens.double())
        share = torch.where(self.batches == 0, 1.0, MOMENTUM)
        self.mean.lerp_(mean.float(), share)
        self.covariance.lerp_(covariance.float(), share)
        self.batches += 1


def _moments(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (width,) and covariance (width, width) of (n, width) tokens of every rank."""
    count = tokens.new_full((1,), float(len(tokens)))
    total, products = tokens.sum(0), tokens.mT @ tokens
    if dist.is_available() and dist.is_initialized():
        for part in (count, total, products):
            dist.all_reduce(part)
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)
