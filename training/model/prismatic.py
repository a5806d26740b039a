"""The network: vision, projector, any causal LM, action head; hidden states exposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.model.action_tokens import ActionTokens
from training.model.checkpoint import (
    DESCRIPTION,
    WEIGHTS,
    load_weights,
    read_json,
    save_weights,
    write_json,
)
from training.model.committed import CommittedEncoder, Told, expand_queries, read_told
from training.model.config import VisionConfig, VlaConfig
from training.model.decoding import action_logits, decode_greedily
from training.model.expert import InsulatedHead
from training.model.grounding import GroundingHead, append_points, ask
from training.model.groups import freeze_groups, group_parameters
from training.model.heads import ChunkHead, StateEncoder, VisualProjector
from training.model.hf_tower import describe_tower
from training.model.llm import build_llm, describe_llm, drop_lm_head, run_trunk
from training.model.output import VlaOutput
from training.model.sequence import Sequence, build_sequence, check_causal
from training.model.tower import VisionTower
from training.model.vision import build_tower
from vla_align_ros.errors import ConfigurationError


class PrismaticVLA(nn.Module):
    """A Prismatic vision-language-action model; given OpenVLA's configuration it is OpenVLA.

    Sequence: [BOS][visual tokens][state token][prompt, right padded][H action queries or action
    tokens]. Construction draws from torch's global random state: seed it first.
    """

    def __init__(self, config: VlaConfig, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        backend = config.attention_backend
        towers = [build_tower(v, backend, pretrained=pretrained) for v in config.vision]
        if len({tower.grid for tower in towers}) != 1:
            raise ConfigurationError(
                got=f"towers with grids {[t.grid for t in towers]}",
                expected="equal grids",
                fix="choose image sizes with the same number of patches",
            )
        self.vision = nn.ModuleList(towers)
        self.llm = build_llm(config.llm, backend, pretrained=pretrained)
        width = int(self.llm.config.hidden_size)
        fused = config.projector.kind == "fused_gelu" or (
            config.projector.kind == "auto" and len(towers) > 1
        )
        self.projector = VisualProjector(sum(t.width for t in towers), width, fused=fused)
        self.visual_positions = (
            nn.Parameter(0.02 * torch.randn(1, self.grid**2, width))
            if config.projector.position_embedding
            else None
        )
        self.state_encoder = StateEncoder(config.state.dim, width) if config.state else None
        self._build_head(width)
        g = config.grounding
        self.grounding = GroundingHead(width, g.maps, g.width) if g else None

    def _build_head(self, width: int) -> None:
        head = self.config.head
        self.action_head: ChunkHead | InsulatedHead | None = None
        self.action_queries: nn.Parameter | None = None
        self.action_tokens: ActionTokens | None = None
        self.committed: CommittedEncoder | None = None
        if head.kind == "chunk":
            drop_lm_head(self.llm, unless=self.config.llm.keep_lm_head)
            self.take_committed(head.committed)
            if head.insulate:
                self.action_head = InsulatedHead(
                    width, head.action_dim, head.horizon, head.hidden, head.blocks
                )
                return
            self.action_queries = nn.Parameter(0.02 * torch.randn(1, head.horizon, width))
            pointed = 2 * self.config.grounding.maps if self._points else 0
            self.action_head = ChunkHead(width + pointed, head.action_dim, head.hidden, head.blocks)
        else:
            vocabulary = head.token_vocab_size or int(self.llm.config.vocab_size)
            self.action_tokens = ActionTokens(vocabulary, head.bins)

    def take_committed(self, count: int) -> None:
        """Let a chunk head be told `count` committed actions; all it has learnt stays."""
        head = dataclasses.replace(self.config.head, committed=count)
        width = (head.hidden if head.insulate else None) or self.llm_width
        self.config = dataclasses.replace(self.config, head=head)
        if count and self.committed is not None:
            self.committed.count = count
        else:
            self.committed = CommittedEncoder(count, head.action_dim, width) if count else None

    @property
    def _points(self) -> bool:
        """Whether the chunk head is told where grounding points."""
        return self.config.grounding is not None and self.config.grounding.to_actions

    @property
    def grid(self) -> int:
        """Patches a side of one picture."""
        return cast(VisionTower, self.vision[0]).grid

    @property
    def llm_width(self) -> int:
        """Width of the hidden states."""
        return int(self.llm.config.hidden_size)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Map (B, [cameras,] 3 * towers, S, S) to (B, cameras * N, vision width)."""
        cameras = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        flat = pixel_values.flatten(0, 1) if pixel_values.ndim == 5 else pixel_values
        if flat.shape[1] != 3 * len(self.vision):
            raise ConfigurationError(
                got=f"pixel_values with {flat.shape[1]} channels",
                expected=f"{3 * len(self.vision)}: 3 a vision tower",
                fix="use the Processor that was made for this model",
            )
        parts = [tower(flat[:, 3 * i : 3 * i + 3]) for i, tower in enumerate(self.vision)]
        features = torch.cat(parts, dim=-1)
        return features.unflatten(0, (-1, cameras)).flatten(1, 2) if cameras > 1 else features

    def forward(self, pixel_values: Tensor, *inputs: Tensor | None, **options: Any) -> VlaOutput:
        """Run the network on `Processor.prepare`'s inputs, batched.

        pixel_values as `encode_images`; the others as `forward_from_visual`.
        """
        return self.forward_from_features(self.encode_images(pixel_values), *inputs, **options)

    def forward_from_features(
        self, vision_features: Tensor, *inputs: Tensor | None, **options: Any
    ) -> VlaOutput:
        """Run all but the towers, on features that `encode_images` gave (frozen towers)."""
        output = self.forward_from_visual(self.project(vision_features), *inputs, **options)
        return dataclasses.replace(output, vision_features=vision_features)

    def project(self, features: Tensor) -> Tensor:
        """Map (B, cameras * N, vision width) to visual tokens (B, cameras * N, LLM width)."""
        visual: Tensor = self.projector(features)
        if self.visual_positions is None:
            return visual
        repeats = visual.shape[1] // self.visual_positions.shape[1]
        return visual + self.visual_positions.repeat(1, repeats, 1)

    def forward_from_visual(
        self,
        visual: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None = None,
        committed: Tensor | None = None,
        committed_mask: Tensor | None = None,
        *,
        action_tokens: Tensor | None = None,
        answer_tokens: Tensor | None = None,
        output_hidden_states: bool = True,
    ) -> VlaOutput:
        """Run all behind the projector, on visual tokens (B, N, D) that `project` gave.

        input_ids, attention_mask (B, T) int64, BOS first; state (B, D) normalised; committed (B, C,
        A) normalised, of which committed_mask (B, C) int64 tells some, or neither; action_tokens
        (B, A) int64 for teacher forcing (a tokens head, or an insulated one whose LLM learns them,
        too). With answer_tokens (B, A) int64 the network only speaks: no state, no actions, logits
        that predict those tokens after the prompt. Grounding needs output_hidden_states.
        """
        speaks = answer_tokens is not None
        tokens = action_tokens if self.action_queries is None and not speaks else answer_tokens
        told = read_told(self.committed, committed, committed_mask)
        texts = (input_ids, attention_mask, None if speaks else state, tokens)
        seq = self.lay_out(visual, *texts, speaks=speaks, told=told)
        outputs = run_trunk(self.llm, seq, hidden_states=output_hidden_states or self._points)
        hidden = outputs.hidden_states
        grounding = self._ground(hidden, seq)
        last = outputs.last_hidden_state
        spoken = tokens is not None or self.action_head is None
        return VlaOutput(
            actions=None if speaks else self._decode_chunk(last, seq, grounding, state, told),
            logits=action_logits(self.llm, last, seq) if spoken else None,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            visual=seq.visual,
            grounding=grounding,
        )

    def _decode_chunk(
        self,
        last: Tensor,
        seq: Sequence,
        grounding: Tensor | None,
        state: Tensor | None,
        told: Told | None,
    ) -> Tensor | None:
        if self.action_head is None:
            return None
        prefix, queries = slice(0, seq.action.start), last[:, seq.action]
        actions: Tensor
        if isinstance(self.action_head, InsulatedHead):
            own = self.state_encoder(state) if self.state_encoder is not None else None
            asked = expand_queries(self.action_head.queries, len(last), self.committed, told)
            actions = self.action_head(last[:, prefix], seq.valid[:, prefix], own, asked)
        else:
            if self._points and grounding is not None:
                queries = append_points(queries, grounding, self.grid)
            actions = self.action_head(queries)
        return actions if told is None else told.keep(actions)

    def lay_out(
        self,
        visual: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None,
        tokens: Tensor | None = None,
        *,
        speaks: bool = False,
        told: Told | None = None,
    ) -> Sequence:
        """Lay visual tokens, state, prompt and action queries (or given tokens) out as a batch."""
        embed = self.llm.get_input_embeddings()
        if not speaks and (state is None) != (self.state_encoder is None):
            raise ConfigurationError(
                got=f"state {'absent' if state is None else 'given'}",
                expected="a state exactly where the model has a state encoder",
                fix="match PolicySpec.state and VlaConfig.state",
            )
        aside = speaks or self.config.head.insulate
        state_token = self.state_encoder(state) if self.state_encoder and not aside else None
        mode: str = "causal" if speaks or self.action_head is None else self.config.attention
        if self.action_queries is not None and not speaks:
            action = expand_queries(self.action_queries, len(input_ids), self.committed, told)
        elif tokens is None:
            action = visual[:, :0]
        else:
            action, mode = embed(tokens), check_causal(mode)
        return build_sequence(
            embed(input_ids), attention_mask.bool(), visual, state_token, action, mode=mode
        )

    def _ground(self, hidden: tuple[Tensor, ...] | None, seq: Sequence) -> Tensor | None:
        if self.grounding is None or self.config.grounding is None or hidden is None:
            return None
        return ask(self.grounding, hidden[self.config.grounding.layer], seq)

    @torch.no_grad()
    def predict(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None = None,
        committed: Tensor | None = None,
        committed_mask: Tensor | None = None,
    ) -> Tensor:
        """Return normalised actions (B, H, A): one pass (chunk), or greedy decoding (tokens)."""
        if self.action_tokens is None:
            texts = (input_ids, attention_mask, state, committed, committed_mask)
            out = self(pixel_values, *texts, output_hidden_states=False)
            assert out.actions is not None
            return out.actions
        tokens = self.generate_tokens(pixel_values, input_ids, attention_mask, state)
        return self.action_tokens.decode(tokens).float().unsqueeze(1)

    def generate_tokens(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None = None,
    ) -> Tensor:
        """Decode action tokens greedily over the whole vocabulary; returns (B, A) int64."""
        visual = self.project(self.encode_images(pixel_values))
        seq = self.lay_out(visual, input_ids, attention_mask, state)
        return decode_greedily(self.llm, seq, self.config.head.action_dim)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Return every parameter once, by group (see GROUPS; empty ones left out)."""
        return group_parameters(self)

    def freeze(self, groups: Iterable[str]) -> None:
        """Stop gradients to the named groups and let the others train."""
        freeze_groups(self, groups)

    def save(self, folder: str | Path) -> None:
        """Write model.json and model.safetensors into `folder` (made if absent)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self, folder / WEIGHTS)
        write_json(self.describe(), folder / DESCRIPTION)

    def describe(self) -> dict[str, Any]:
        """Return what model.json holds: the configuration, with LLM and towers spelled out."""
        llm = dataclasses.replace(self.config.llm, config=describe_llm(self.llm))
        vision = self.describe_vision()
        return dataclasses.replace(self.config, llm=llm, vision=vision).to_dict()

    def describe_vision(self) -> tuple[VisionConfig, ...]:
        """Return the towers' configurations with every backbone spelled out."""
        pairs = zip(self.config.vision, self.vision, strict=True)
        return tuple(describe_tower(config, cast(VisionTower, tower)) for config, tower in pairs)

    @classmethod
    def load(cls, folder: str | Path) -> PrismaticVLA:
        """Rebuild a saved model, in eval mode; needs no hub and no other weights."""
        folder = Path(folder)
        config = VlaConfig.from_dict(read_json(folder / DESCRIPTION))
        with torch.random.fork_rng(devices=[]):
            model = cls(config, pretrained=False)
        load_weights(model, folder / WEIGHTS)
        return model.eval()

    def without_grounding(self) -> PrismaticVLA:
        """Drop the auxiliary head in place (for export), unless actions need it; return self."""
        if self._points:
            return self
        self.grounding = None
        self.config = dataclasses.replace(self.config, grounding=None)
        return self
