"""The graphs that a policy is exported to: what each computes, its inputs and its outputs.

A chunk head is one pass; a token head is a prefill and a decoding step with a cache whose rows lie
outermost, so that a step adds one contiguous block. Everything is static: batch 1, all lengths
fixed by the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.model import PrismaticVLA
from training.model.decoding import action_logits
from training.model.llm import check_window, vocabulary_logits
from training.model.sequence import MASKED
from vla_align_ros.contract.graphs import GraphSpec, chunk_graphs, token_graphs
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ExportError


class VisionGraph(nn.Module):
    """Towers and projector: pixel_values to visual tokens (1, N, D)."""

    def __init__(self, model: PrismaticVLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the visual tokens as the language model takes them."""
        return self.model.project(self.model.encode_images(pixel_values))


class PolicyGraph(nn.Module):
    """A chunk policy in one pass, from pictures or from visual tokens; actions (1, H, A)."""

    def __init__(self, model: PrismaticVLA, *, from_visual: bool = False) -> None:
        super().__init__()
        self.model = model
        self.from_visual = from_visual

    def forward(
        self, first: Tensor, input_ids: Tensor, attention_mask: Tensor, *others: Tensor
    ) -> Tensor:
        """Return normalised actions.

        first: pixel_values, or visual tokens. others: state, committed and committed_mask, as far
        as the policy has them.
        """
        run = self.model.forward_from_visual if self.from_visual else self.model
        texts = (input_ids, attention_mask, *name_others(self.model, others))
        actions: Tensor = run(first, *texts, output_hidden_states=False).actions
        return actions


class PrefillGraph(nn.Module):
    """A token policy up to its first action token, and the cache of all that was read."""

    def __init__(self, model: PrismaticVLA, rows: int) -> None:
        super().__init__()
        self.model = model
        self.rows = rows

    def forward(
        self, visual: Tensor, input_ids: Tensor, attention_mask: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return token (1, 1), action (1, 1), keys and values (rows, L, KV, D)."""
        from transformers import DynamicCache

        llm = self.model.llm
        seq = self.model.lay_out(visual, input_ids, attention_mask, state)
        out = llm.base_model(
            inputs_embeds=seq.embeds,
            attention_mask=seq.attend,
            position_ids=seq.positions,
            past_key_values=DynamicCache(),
            use_cache=True,
        )
        token = action_logits(llm, out.last_hidden_state, seq)[:, -1].argmax(-1, keepdim=True)
        layers = out.past_key_values.layers
        keys = self._lay_rows(torch.stack([layer.keys[0] for layer in layers]))
        values = self._lay_rows(torch.stack([layer.values[0] for layer in layers]))
        return token, read_action(self.model, token), keys, values

    def _lay_rows(self, states: Tensor) -> Tensor:
        """(L, KV, S, D) to (rows, L, KV, D), zero behind what was read."""
        laid = states.permute(2, 0, 1, 3)
        return torch.cat([laid, laid.new_zeros(self.rows - laid.shape[0], *laid.shape[1:])])


class DecodeGraph(nn.Module):
    """One further action token of a token policy, from the last one and the cache."""

    def __init__(self, model: PrismaticVLA, rows: int, read: int) -> None:
        super().__init__()
        self.model = model
        self.rows = rows
        self.read = read

    def forward(
        self, token: Tensor, step: Tensor, attention_mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return next_token (1, 1), action (1, 1) and the token's keys, values (1, L, KV, D).

        step (1,): how many tokens were decoded after the prefill's, which the cache holds.
        """
        from transformers import DynamicCache

        llm = self.model.llm
        others = attention_mask.new_ones(1, self.read - attention_mask.shape[1])
        prefix = torch.cat([attention_mask[:, :1], others, attention_mask[:, 1:]], dim=1)
        decoded = torch.arange(self.rows - self.read, device=step.device)[None] < step
        valid = torch.cat([prefix.bool(), decoded, decoded.new_ones(1, 1)], dim=1)
        mask = torch.zeros(valid.shape, dtype=keys.dtype).masked_fill(~valid, MASKED)
        cache = DynamicCache()
        for index, (key, value) in enumerate(zip(keys.unbind(1), values.unbind(1), strict=True)):
            cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], index)
        out = llm.base_model(
            inputs_embeds=llm.get_input_embeddings()(token),
            attention_mask=mask[:, None, None],
            position_ids=(prefix.sum(dim=1) + step)[None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = vocabulary_logits(llm, out.last_hidden_state)
        next_token = logits[:, -1].argmax(-1, keepdim=True)
        layers = out.past_key_values.layers
        new_keys = torch.stack([layer.keys[0, :, -1] for layer in layers])[None]
        new_values = torch.stack([layer.values[0, :, -1] for layer in layers])[None]
        return next_token, read_action(self.model, next_token), new_keys, new_values


def name_others(model: PrismaticVLA, others: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """What a graph takes behind its prompt, as the model does: state, committed, committed_mask."""
    state = others[0] if model.state_encoder is not None else None
    return (state, *others[-2:]) if model.committed is not None else (state,)


def read_action(model: PrismaticVLA, token: Tensor) -> Tensor:
    """Return the normalised action that a token (1, 1) stands for, float32 (1, 1)."""
    assert model.action_tokens is not None
    return model.action_tokens.decode(token).float()


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """One graph to export: its module, and name, inputs and outputs as the contract has them."""

    module: nn.Module
    spec: GraphSpec


def plan_graphs(
    model: PrismaticVLA, processor: Processor, *, split_vision: bool = False
) -> list[Graph]:
    """List the graphs of a policy, in the order in which they run.

    Args:
        model: real, or on the meta device. processor: whose tensors the first graph takes.
        split_vision: whether a chunk policy's vision is a graph of its own, too.

    Raises:
        ExportError: if model and processor differ in the horizon or the committed actions.
    """
    use_eager_attention(model)
    model = model.without_grounding().eval().requires_grad_(False)
    head = model.config.head
    action = processor.spec.action
    if (action.horizon, action.committed) != (head.horizon, head.committed):
        raise ExportError(
            "model and processor disagree",
            got=f"horizon {head.horizon}, {head.committed} committed",
            expected=f"{action.horizon}, {action.committed}",
            fix="export the files of one run",
        )
    visual = (1, model.grid**2 * len(processor.spec.cameras), model.llm_width)
    if head.kind == "chunk":
        modules: Sequence[nn.Module] = (PolicyGraph(model),)
        if split_vision:
            modules = (VisionGraph(model), PolicyGraph(model, from_visual=True))
        specs = chunk_graphs(processor, visual if split_vision else None)
        return [Graph(module, spec) for module, spec in zip(modules, specs, strict=True)]
    config: Any = model.llm.config
    read = processor.tokenizer.max_length + visual[1] + (model.state_encoder is not None)
    rows = read + head.action_dim - 1
    check_window(model.llm, rows + 1)
    block = (
        int(config.num_hidden_layers),
        int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        int(getattr(config, "head_dim", None) or model.llm_width // config.num_attention_heads),
    )
    modules = (VisionGraph(model), PrefillGraph(model, rows), DecodeGraph(model, rows, read))
    specs = token_graphs(processor, visual, rows=rows, block=block)
    return [Graph(module, spec) for module, spec in zip(modules, specs, strict=True)]


def use_eager_attention(model: PrismaticVLA) -> None:
    """Switch transformers' parts to eager attention, which exports to MatMul and Softmax."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"
