"""The tokens head: logits of action tokens, and greedy decoding with a cache, as OpenVLA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.model.llm import check_window, vocabulary_logits
from training.model.sequence import MASKED, Sequence


def action_logits(llm: Any, last: Tensor, seq: Sequence) -> Tensor:
    """Return (B, A, V): for each given action token the logits that predict it.

    last: (B, S, D) final hidden states. The last prompt token predicts the first action token, each
    action token the next one. Without action tokens A is 1.
    """
    rows = torch.arange(last.shape[0], device=last.device)
    first = last[rows, seq.last_prompt].unsqueeze(1)
    given = last[:, seq.action]
    states = first if given.shape[1] == 0 else torch.cat([first, given[:, :-1]], dim=1)
    return vocabulary_logits(llm, states)


@torch.no_grad()
def decode_greedily(llm: Any, seq: Sequence, count: int) -> Tensor:
    """Return `count` tokens (B, count) int64 after a sequence without action tokens."""
    check_window(llm, seq.embeds.shape[1] + count)
    embed = llm.get_input_embeddings()
    out = llm.base_model(
        inputs_embeds=seq.embeds,
        attention_mask=seq.attend,
        position_ids=seq.positions,
        use_cache=True,
    )
    valid, position = seq.valid, seq.valid.sum(dim=1, keepdim=True)
    logits = action_logits(llm, out.last_hidden_state, seq)
    tokens = [logits[:, -1].argmax(dim=-1, keepdim=True)]
    while len(tokens) < count:
        valid = torch.cat([valid, valid.new_ones(valid.shape[0], 1)], dim=1)
        mask = seq.attend.new_zeros(valid.shape).masked_fill(~valid, MASKED)
        out = llm.base_model(
            inputs_embeds=embed(tokens[-1]),
            attention_mask=mask[:, None, None],
            position_ids=position,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        position = position + 1
        logits = vocabulary_logits(llm, out.last_hidden_state)
        tokens.append(logits[:, -1].argmax(dim=-1, keepdim=True))
    return torch.cat(tokens, dim=1)
