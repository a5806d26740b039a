"""A training aid for small policies: the prompt points at the patches of what it names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model.sequence import Sequence


class GroundingHead(nn.Module):
    """K heat maps over the visual tokens, asked by the prompt's last token.

    Scaled dot product between linear maps of one LLM layer's hidden states. Under causal attention
    visual tokens never see the instruction, the prompt token sees both: it carries the question.
    """

    def __init__(self, llm_width: int, maps: int = 2, width: int = 128) -> None:
        super().__init__()
        self.maps = maps
        self.scale = width**-0.5
        self.norm_query = nn.LayerNorm(llm_width)
        self.norm_key = nn.LayerNorm(llm_width)
        self.query = nn.Linear(llm_width, maps * width)
        self.key = nn.Linear(llm_width, width)

    def forward(self, prompt_state: Tensor, visual_states: Tensor) -> Tensor:
        """Map (B, D) and (B, N, D) to float32 logits (B, K, N)."""
        query = self.query(self.norm_query(prompt_state)).unflatten(-1, (self.maps, -1))
        key = self.key(self.norm_key(visual_states))
        logits: Tensor = torch.einsum("bkw,bnw->bkn", query, key).float() * self.scale
        return logits


def ask(head: GroundingHead, states: Tensor, seq: Sequence) -> Tensor:
    """Return the logits (B, K, N) of one layer's hidden states (B, S, D)."""
    prompt = states[torch.arange(states.shape[0], device=states.device), seq.last_prompt]
    maps: Tensor = head(prompt, states[:, seq.visual])
    return maps


def centres_of_mass(logits: Tensor, grid: int) -> Tensor:
    """Where maps point: logits (B, K, grid * grid) to (B, K, 2) x, y in [-1, 1] of the picture."""
    axis = torch.linspace(-1.0, 1.0, grid, device=logits.device)
    maps = logits.softmax(dim=-1).unflatten(-1, (grid, grid))
    x = (maps.sum(dim=-2) * axis).sum(dim=-1)
    y = (maps.sum(dim=-1) * axis).sum(dim=-1)
    return torch.stack([x, y], dim=-1)


def append_points(queries: Tensor, logits: Tensor, grid: int) -> Tensor:
    """Tell each action query (B, H, D) where the K maps point: (B, H, D + 2 K)."""
    points = centres_of_mass(logits, grid).flatten(1).to(queries.dtype)
    return torch.cat([queries, points.unsqueeze(1).expand(-1, queries.shape[1], -1)], dim=-1)


def grounding_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against soft targets, the mean over all B * K maps.

    logits, targets: (B, K, N); each target map sums to 1, or to 0 where the thing is not in view:
    such a map costs nothing and counts as one, so that pieces of a batch add up to the batch.
    """
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
