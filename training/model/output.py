"""What one forward pass of the network yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class VlaOutput:
    """What one forward pass yields.

    actions: (B, H, A) normalised (chunk head). logits: (B, A, V) at the positions that predict the
    given action or answer tokens, (B, 1, V) of a tokens head without them. hidden_states: the
    LLM's, index 0 the embedding output, the last one after its final norm, each (B, S, D). visual:
    where the visual tokens lie in S. grounding: (B, K, N) logits. vision_features: (B, N, vision
    width) before the projector, None if the pass began behind it.
    """

    actions: Tensor | None
    logits: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    visual: slice
    grounding: Tensor | None
    vision_features: Tensor | None = None
