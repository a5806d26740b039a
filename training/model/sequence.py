"""Where tokens sit and what they see: [BOS][visual][state][prompt, right padded][action]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_align_ros.errors import ConfigurationError

MASKED = torch.finfo(torch.bfloat16).min  # finite in bf16 and fp32 alike


@dataclass(frozen=True, slots=True)
class Sequence:
    """One batch laid out for the language model.

    embeds (B, S, D); attend (B, 1, S, S) additive, of embeds' dtype; positions (B, S) int64; valid
    (B, S) bool;
    visual and action are slices of S; last_prompt (B,) int64 index of the last valid prompt token.
    """

    embeds: Tensor
    attend: Tensor
    positions: Tensor
    valid: Tensor
    visual: slice
    action: slice
    last_prompt: Tensor


def build_sequence(
    text: Tensor,
    text_valid: Tensor,
    visual: Tensor,
    state: Tensor | None,
    action: Tensor,
    *,
    mode: str,
) -> Sequence:
    """Assemble the embeddings.

    text (B, T, D) with BOS first; text_valid (B, T) bool; visual (B, N, D); state (B, 1, D) or
    None; action (B, A, D), A may be 0. mode: "causal_prefix" (parallel action queries),
    "bidirectional", or "causal" (autoregressive action tokens).
    """
    batch, prompt_len = text_valid.shape
    middle = visual if state is None else torch.cat([visual, state], dim=1)
    embeds = torch.cat([text[:, :1], middle, text[:, 1:], action], dim=1)
    ones = text_valid.new_ones(batch, middle.shape[1])
    action_ones = text_valid.new_ones(batch, action.shape[1])
    valid = torch.cat([text_valid[:, :1], ones, text_valid[:, 1:], action_ones], dim=1)
    prefix = prompt_len + middle.shape[1]
    return Sequence(
        embeds=embeds,
        attend=additive_mask(valid, prefix, mode).to(embeds.dtype),
        positions=(valid.long().cumsum(dim=1) - 1).clamp(min=0),
        valid=valid,
        visual=slice(1, 1 + visual.shape[1]),
        action=slice(prefix, prefix + action.shape[1]),
        last_prompt=middle.shape[1] + text_valid.long().sum(dim=1) - 1,
    )


def additive_mask(valid: Tensor, prefix: int, mode: str) -> Tensor:
    """Return (B, 1, S, S): 0 where a row may look at a column, very negative elsewhere."""
    length = valid.shape[1]
    if mode == "bidirectional":
        allowed = torch.ones(length, length, dtype=torch.bool, device=valid.device)
    else:
        allowed = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
        if mode == "causal_prefix":
            allowed[prefix:, prefix:] = True
    visible = allowed[None] & valid[:, None, :]
    mask = torch.zeros(visible.shape, dtype=torch.float32, device=valid.device)
    return mask.masked_fill(~visible, MASKED).unsqueeze(1)


def check_causal(mode: str) -> str:
    """Return "causal", the only mode in which given tokens stay unseen by what predicts them."""
    if mode == "bidirectional":
        raise ConfigurationError(
            got="tokens to predict under bidirectional attention",
            expected="causal attention, under which no token sees a later one",
            fix="set VlaConfig.attention to causal_prefix",
        )
    return "causal"
