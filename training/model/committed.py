"""Actions that are decided already: told to the queries of a chunk head, and kept in its plan.

Real-time chunking by training: "Training-Time Action Conditioning for Efficient Real-Time
Chunking" (arXiv 2512.05964), for a head of one pass. While inference runs, the arm goes on with the
plan before; a head that is told those actions plans what follows them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_align_ros.errors import ConfigurationError


class Told(NamedTuple):
    """Actions (B, C, A), normalised, and mask (B, C) int64, 1 where one is decided."""

    actions: Tensor
    mask: Tensor

    def keep(self, planned: Tensor) -> Tensor:
        """Put the decided actions in their places of a plan (B, H, A)."""
        count = self.actions.shape[1]
        decided = self.mask.unsqueeze(-1).bool()
        first = torch.where(decided, self.actions.to(planned.dtype), planned[:, :count])
        return torch.cat([first, planned[:, count:]], dim=1)


class CommittedEncoder(nn.Module):
    """One vector for each decided action, added to the query in its place.

    It begins at zero, so that a network that gets it computes what it did, told or not.
    """

    def __init__(self, count: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.fc = nn.Linear(action_dim, width)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, queries: Tensor, told: Told) -> Tensor:
        """Add to queries (B, H, width) what the first C actions are."""
        vectors = self.fc(told.actions) * told.mask.unsqueeze(-1).to(queries.dtype)
        return torch.cat([queries[:, : self.count] + vectors, queries[:, self.count :]], dim=1)


def read_told(
    encoder: CommittedEncoder | None, actions: Tensor | None, mask: Tensor | None
) -> Told | None:
    """Both tensors as one, None where nothing is told; ConfigurationError without an encoder."""
    if actions is None or mask is None:
        return None
    if encoder is None:
        raise ConfigurationError(
            got="committed actions",
            expected="none: this model's head cannot be told any",
            fix="train it with HeadConfig.committed",
        )
    return Told(actions, mask)


def expand_queries(
    queries: Tensor, batch: int, encoder: CommittedEncoder | None, told: Told | None
) -> Tensor:
    """Learned queries (1, H, width) for a batch, with what is told added to them."""
    expanded = queries.expand(batch, -1, -1)
    return expanded if encoder is None or told is None else encoder(expanded, told)
