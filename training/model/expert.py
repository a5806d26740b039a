"""An action head that learns from the language model without teaching it: knowledge insulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InsulatedHead(nn.Module):
    """Learned queries that attend to the backbone's states behind a stop of the gradient.

    The action expert of "Knowledge Insulating Vision-Language-Action Models" (arXiv 2505.23705) as
    regression: `blocks` blocks of self-attention among the actions, cross-attention to the LLM's
    final states, and an MLP, all with weights of their own. The proprioceptive state comes in
    beside those states and does get its gradient, as the LLM never sees it then.
    """

    def __init__(
        self, llm_width: int, action_dim: int, horizon: int, hidden: int | None, blocks: int
    ) -> None:
        super().__init__()
        width = hidden or llm_width
        heads = max(count for count in range(1, max(1, width // 64) + 1) if width % count == 0)
        self.queries = nn.Parameter(0.02 * torch.randn(1, horizon, width))
        self.norm_in = nn.LayerNorm(llm_width)
        self.fc_in = nn.Linear(llm_width, width)
        self.blocks = nn.ModuleList(
            [
                nn.TransformerDecoderLayer(
                    width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(blocks)
            ]
        )
        self.norm_out = nn.LayerNorm(width)
        self.fc_out = nn.Linear(width, action_dim)

    def forward(
        self, states: Tensor, valid: Tensor, own: Tensor | None, queries: Tensor | None = None
    ) -> Tensor:
        """Return actions (B, H, action dim).

        states: (B, S, LLM width) final states, which get no gradient; valid: (B, S) bool, False at
        padding; own: (B, 1, LLM width) the state token, or None; queries: (B, H, width) in the
        place of the learned ones, which they may be made of.
        """
        memory, seen = states.detach(), valid
        if own is not None:
            memory = torch.cat([memory, own.to(memory.dtype)], dim=1)
            seen = torch.cat([valid, valid.new_ones(valid.shape[0], 1)], dim=1)
        memory = self.fc_in(self.norm_in(memory))
        queries = self.queries.expand(memory.shape[0], -1, -1) if queries is None else queries
        x = queries.to(memory.dtype)
        for block in self.blocks:
            x = block(x, memory, memory_key_padding_mask=~seen)
        actions: Tensor = self.fc_out(self.norm_out(x))
        return actions
