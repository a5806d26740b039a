"""The small trained parts around the language model: projector, state token, chunk head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisualProjector(nn.Module):
    """OpenVLA's MLP from vision width to LLM width.

    One tower: Linear-GELU-Linear. Two ("fused"): Linear to 4x the vision width, GELU, Linear, GELU,
    Linear.
    """

    def __init__(self, vision_width: int, llm_width: int, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        first = 4 * vision_width if fused else llm_width
        self.fc1 = nn.Linear(vision_width, first)
        self.fc2 = nn.Linear(first, llm_width)
        self.fc3 = nn.Linear(llm_width, llm_width) if fused else None
        self.act = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, N, vision width) to (B, N, LLM width)."""
        hidden: Tensor = self.fc2(self.act(self.fc1(features)))
        return hidden if self.fc3 is None else self.fc3(self.act(hidden))


class StateEncoder(nn.Module):
    """One token from the normalised proprioceptive state (OpenVLA-OFT's proprio projector)."""

    def __init__(self, dim: int, llm_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, llm_width)
        self.fc2 = nn.Linear(llm_width, llm_width)
        self.act = nn.GELU()

    def forward(self, state: Tensor) -> Tensor:
        """Map (B, D) to (B, 1, LLM width)."""
        token: Tensor = self.fc2(self.act(self.fc1(state)))
        return token.unsqueeze(1)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


class ChunkHead(nn.Module):
    """OpenVLA-OFT's MLP-ResNet: each action query's state becomes one normalised action."""

    def __init__(
        self, llm_width: int, action_dim: int, hidden: int | None = None, blocks: int = 2
    ) -> None:
        super().__init__()
        hidden = hidden or llm_width
        self.norm_in = nn.LayerNorm(llm_width)
        self.fc_in = nn.Linear(llm_width, hidden)
        self.blocks = nn.ModuleList([_ResidualBlock(hidden) for _ in range(blocks)])
        self.norm_out = nn.LayerNorm(hidden)
        self.fc_out = nn.Linear(hidden, action_dim)

    def forward(self, query_states: Tensor) -> Tensor:
        """Map (B, H, LLM width) to (B, H, action dim)."""
        x = torch.relu(self.fc_in(self.norm_in(query_states)))
        for block in self.blocks:
            x = block(x)
        actions: Tensor = self.fc_out(self.norm_out(x))
        return actions


def chunk_l1_loss(
    actions: Tensor, target: Tensor, is_pad: Tensor | None = None, dim_weights: Tensor | None = None
) -> Tensor:
    """Mean absolute error over the steps that exist: of each chunk, then over the chunks.

    A chunk counts alike however much of it is cut, so that pieces of a batch add up to the batch.

    actions, target: (B, H, A) normalised. is_pad: (B, H) bool, True past the episode's end
    (LeRobot's `action_is_pad`). dim_weights: (A,) relative weights, averaging to the plain mean
    when all ones.
    """
    error = (actions.float() - target.float()).abs()
    if dim_weights is not None:
        error = error * (dim_weights / dim_weights.mean())
    if is_pad is None:
        return error.mean()
    return _mean_of_chunks(error, is_pad)


def displacement_l1_loss(actions: Tensor, target: Tensor, is_pad: Tensor | None = None) -> Tensor:
    """Mean absolute error of where the arm would be after each step: of the actions' running sums.

    Arguments as for `chunk_l1_loss`; the last dimension, the gripper, is no displacement and is
    left out. Most single steps of a demonstration are near zero, and the median, which L1 asks
    for, is zero for as long as a network does not know *when* the arm moves; the sums already
    tell it *where to*.
    """
    error = actions[..., :-1].float() - target[..., :-1].float()
    if is_pad is None:
        return error.cumsum(dim=1).abs().mean()
    error = error.masked_fill(is_pad.unsqueeze(-1), 0.0)
    return _mean_of_chunks(error.cumsum(dim=1).abs(), is_pad)


def _mean_of_chunks(error: Tensor, is_pad: Tensor) -> Tensor:
    """Mean of (B, H, A) over each chunk's steps that exist, then over the chunks."""
    kept = (~is_pad).to(error.dtype)
    of_chunks = (error.mean(dim=-1) * kept).sum(dim=-1) / kept.sum(dim=-1).clamp(min=1.0)
    return of_chunks.mean()
