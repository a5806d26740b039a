"""The alignment loss of "Don't Blind Your VLA" (arXiv 2510.25616), and nothing else."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vla_align_ros.errors import ConfigurationError


def cosine_alignment_loss(projected: Tensor, target: Tensor) -> Tensor:
    """Return -(1/k) sum_j cos(u_j, z_j), mean over the batch; a float32 scalar in [-1, 1].

    projected: (B, k, d) student tokens after the projector; target: (B, k, d) teacher features.
    """
    if projected.shape != target.shape:
        raise ConfigurationError(
            got=f"student tokens {tuple(projected.shape)}, teacher features {tuple(target.shape)}",
            expected="equal shapes (batch, tokens, teacher width)",
            fix="give the teacher the student's grid: resize its image, not its features",
        )
    return -functional.cosine_similarity(projected.float(), target.float(), dim=-1).mean()
