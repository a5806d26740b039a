"""What alignment minimises: the paper's cosine, and the two losses that it compares with."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from training.alignment.registry import find_variant
from vla_align_ros.errors import ConfigurationError


class AlignmentLoss(Protocol):
    """A scalar that is least where projected student tokens match the teacher's features."""

    name: ClassVar[str]

    def __call__(self, projected: Tensor, target: Tensor) -> Tensor:
        """Compare (B, k, d) projected student tokens with (B, k, d) teacher features."""
        ...


class CosineLoss:
    """-(1/k) sum_j cos(u_j, z_j), mean over the batch: the paper's, in [-1, 1]."""

    name: ClassVar[str] = "cosine"

    def __init__(self, temperature: float) -> None:
        """Take no notice of `temperature`."""

    def __call__(self, projected: Tensor, target: Tensor) -> Tensor:
        """Return a float32 scalar in [-1, 1]."""
        return cosine_alignment_loss(projected, target)


class L2Loss:
    """Mean squared difference over batch, tokens and channels, 0 or more.

    The features are not normalised, so that lengths count: the squared distance of unit vectors
    would be the cosine loss but for a constant.
    """

    name: ClassVar[str] = "l2"

    def __init__(self, temperature: float) -> None:
        """Take no notice of `temperature`."""

    def __call__(self, projected: Tensor, target: Tensor) -> Tensor:
        """Return a float32 scalar, 0 or more."""
        _check_shapes(projected, target)
        return functional.mse_loss(projected.float(), target.float())


class InfoNceLoss:
    """Each student token has to find its own teacher token among those of the same picture(s).

    Cross-entropy of cos(u_i, z_j) / temperature over the sample's k tokens j, where j = i is right;
    log k for features that tell nothing. Only tokens of the same sample are negatives: so the loss
    is a mean over samples, whatever the ranks and accumulation steps that a batch is divided into,
    and costs B k^2 rather than (B k)^2.
    """

    name: ClassVar[str] = "infonce"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, projected: Tensor, target: Tensor) -> Tensor:
        """Return a float32 scalar, 0 or more."""
        _check_shapes(projected, target)
        u = functional.normalize(projected.float(), dim=-1)
        z = functional.normalize(target.float(), dim=-1)
        with torch.autocast(
            u.device.type, enabled=False
        ):  # bf16 is too coarse for a softmax / 0.07
            logits = u @ z.transpose(1, 2) / self.temperature
        own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        return functional.cross_entropy(logits.flatten(0, 1), own.flatten())


LOSSES: dict[str, type[CosineLoss] | type[L2Loss] | type[InfoNceLoss]] = {
    loss.name: loss for loss in (CosineLoss, L2Loss, InfoNceLoss)
}


def build_loss(name: str, *, temperature: float) -> AlignmentLoss:
    """Build the loss called `name`; an unknown name lists the valid ones."""
    return find_variant(LOSSES, name, "alignment.loss")(temperature)


def cosine_alignment_loss(projected: Tensor, target: Tensor) -> Tensor:
    """Return -(1/k) sum_j cos(u_j, z_j), mean over the batch; a float32 scalar in [-1, 1].

    projected: (B, k, d) student tokens after the projector; target: (B, k, d) teacher features.
    """
    _check_shapes(projected, target)
    return -functional.cosine_similarity(projected.float(), target.float(), dim=-1).mean()


def _check_shapes(projected: Tensor, target: Tensor) -> None:
    if projected.shape != target.shape:
        raise ConfigurationError(
            got=f"student tokens {tuple(projected.shape)}, teacher features {tuple(target.shape)}",
            expected="equal shapes (batch, tokens, teacher width)",
            fix="give the teacher the student's grid: resize its image, not its features",
        )
