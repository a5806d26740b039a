"""Where words look: attention of prompt tokens to visual tokens, relative to a neutral prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla_align_ros.contract.prompt import PromptTokenizer, clean_instruction
from vla_align_ros.errors import ConfigurationError, TrainingError

LAST = -1  # asks the last token of the prompt
_SLOT = "{instruction}"


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMaps:
    """Attention of Q query tokens a picture to its N visual tokens, mean over the heads.

    weights: (L, B, Q, N) float32 of L blocks; what is missing to 1 in a row went to other tokens.
    """

    weights: Tensor
    blocks: tuple[int, ...]

    @property
    def share(self) -> Tensor:
        """Part (L, B, Q) of the attention that the visual tokens get together."""
        return self.weights.sum(-1)


@torch.no_grad()
def measure_attention(
    model: Any,
    inputs: Mapping[str, Tensor],
    blocks: Sequence[int],
    queries: Tensor | None = None,
) -> AttentionMaps:
    """Run the network once on `Processor.prepare`'s inputs, batched, and keep its attention.

    blocks: LLM blocks, counted from 1. queries: (B, Q) int64, each an index into input_ids (0 is
    BOS), or LAST for the last token of that prompt; by default that one. The model must be in eval
    mode; its attention implementation is eager during the call and what it was afterwards.

    Raises:
        TrainingError: if a block keeps its attention to itself.
    """
    if queries is None:
        queries = torch.full((len(inputs["input_ids"]), 1), LAST)
    with _eager_attention(model.llm), record_attention(model.llm, blocks) as recorded:
        output = model(**inputs, output_hidden_states=False)
    missing = [block for block in blocks if block not in recorded]
    if missing:
        raise TrainingError(
            "The language model does not show its attention",
            got=f"no weights from blocks {missing} of {type(model.llm).__name__}",
            expected="attention weights from eager attention",
            fix="--set watch.attention=false",
        )
    inserted = count_inserted(model, inputs, recorded[blocks[0]].shape[-1])
    rows = sequence_positions(queries.cpu(), inputs["attention_mask"].cpu(), inserted)
    pictures = torch.arange(len(rows)).unsqueeze(1)
    maps = [recorded[block].cpu()[pictures, rows][..., output.visual] for block in blocks]
    return AttentionMaps(torch.stack(maps), tuple(blocks))


def count_inserted(model: Any, inputs: Mapping[str, Tensor], length: int) -> int:
    """How many tokens of a sequence of `length` stand between BOS and the rest of the text."""
    behind = 0 if model.action_queries is None else int(model.action_queries.shape[1])
    return length - inputs["input_ids"].shape[1] - behind


def sequence_positions(queries: Tensor, attention_mask: Tensor, inserted: int) -> Tensor:
    """Where text tokens (B, Q) lie in the network's sequence, (B, Q) int64.

    `inserted` tokens (visual ones, and the state's if there is one) stand between BOS and the rest
    of the text, so that every text token but BOS is that much further back than in input_ids.
    """
    last = attention_mask.long().sum(1, keepdim=True) - 1
    text = torch.where(queries == LAST, last, queries)
    if (text > last).any() or (text < 0).any():
        raise ConfigurationError(
            "No such token in the prompt",
            got=f"indices {queries.tolist()} in prompts of {(last + 1).flatten().tolist()} tokens",
            expected="an index within the prompt, or -1 for its last token",
            fix="ask a word that the instruction has",
        )
    return torch.where(text == 0, text, text + inserted)


def relative_maps(asked: Tensor, neutral: Tensor) -> Tensor:
    """Attention (..., N) over the neutral prompt's (..., N): above 1 is where the words look more.

    Both are first divided by their own sums, so that only *where* counts, not how much.
    """
    tiny = torch.finfo(torch.float32).tiny
    ask = asked / asked.sum(-1, keepdim=True).clamp(min=tiny)
    base = neutral / neutral.sum(-1, keepdim=True).clamp(min=tiny)
    floor = 1e-3 / base.shape[-1]  # of an even spread: no ratio explodes over what nobody sees
    return (ask + floor) / (base + floor)


def find_word(
    tokenizer: PromptTokenizer, instruction: str, word: str, *, last: bool = False
) -> int | None:
    """Index into input_ids of the last token of `word`'s first occurrence; None where it is not.

    The last token of a word in several pieces has read all of them. `last`: of its last occurrence.
    """
    from tokenizers import Tokenizer

    text = tokenizer.template.render(instruction)
    wanted, words = clean_instruction(word), clean_instruction(instruction)
    found = list(re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", words))
    if not found:
        return None
    inside = found[-1 if last else 0]
    before = tokenizer.template.text.index(_SLOT)
    start, end = before + inside.start(), before + inside.end()
    reader = Tokenizer.from_str(tokenizer.content.decode())
    reader.no_padding()  # as PromptTokenizer has it, whatever the file says
    reader.no_truncation()
    encoding = reader.encode(text, add_special_tokens=False)
    touched = [
        index for index, (low, high) in enumerate(encoding.offsets) if low < end and high > start
    ]
    return touched[-1] + 1 if touched else None  # behind BOS


@contextmanager
def _eager_attention(llm: Any) -> Iterator[None]:
    """Use plain attention, uncompiled, for a while: others do not compute the weights."""
    before = llm.config._attn_implementation
    llm.set_attn_implementation("eager")
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        llm.set_attn_implementation(before)


@contextmanager
def record_attention(llm: Any, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect {block: (B, S, S) float32 attention, mean over the heads} of the first pass inside.

    The tensors stay part of the graph and on their device; a block that keeps its weights to
    itself is missing.
    """
    recorded: dict[int, Tensor] = {}

    def hook(block: int) -> Any:
        def keep(module: nn.Module, arguments: Any, result: Any) -> None:
            weights = result[1] if isinstance(result, tuple) and len(result) > 1 else None
            if weights is not None and block not in recorded:  # the pass over the prompt is first
                recorded[block] = weights.float().mean(1)

        return keep

    layers = llm.base_model.layers
    handles = [layers[b - 1].self_attn.register_forward_hook(hook(b)) for b in blocks]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
