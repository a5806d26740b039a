"""The prompt tokenizer of a pretrained language model, in the form that the robot reads."""

from __future__ import annotations

from typing import Any

from training.model.config import LlmConfig
from training.model.llm import read_text_config
from training.model.smollm import SMOLLM2, load_smollm2_tokenizer
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer
from vla_align_ros.errors import ConfigurationError

PROMPT_TOKENS = 48
"""Room for OpenVLA's question around an instruction of some 30 tokens."""


def build_student_tokenizer(
    llm: LlmConfig, *, template: PromptTemplate | None = None, max_length: int = PROMPT_TOKENS
) -> PromptTokenizer:
    """Return the language model's own tokenizer around a template (default: OpenVLA's question).

    BOS is the tokenizer's, else the one that the model's configuration names (Qwen3), else the end
    token; padding likewise falls back to the end token. Both are only marked, never read as words.

    Raises:
        ConfigurationError: if the LLM is not pretrained, its tokenizer cannot be read or has no
            fast form, or it knows more tokens than the model has embeddings.
    """
    tokenizer, first_id, embeddings = _open(llm)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            "The tokenizer has no fast form",
            got=type(tokenizer).__name__,
            expected="one with a tokenizer.json, which the robot can read",
            fix="convert it, or choose another language model",
        )
    content = tokenizer.backend_tokenizer.to_str().encode()
    end = tokenizer.eos_token
    first = tokenizer.bos_token or _token(tokenizer, first_id) or end
    prompt = PromptTokenizer(
        content, template, max_length, bos_token=first, pad_token=tokenizer.pad_token or end
    )
    if prompt.vocabulary_size > embeddings:
        raise ConfigurationError(
            "The tokenizer knows more tokens than the language model",
            got=f"{prompt.vocabulary_size} tokens for {embeddings} embeddings",
            expected="a tokenizer and weights that belong together",
            fix="correct LlmConfig.pretrained",
        )
    return prompt


def _open(llm: LlmConfig) -> tuple[Any, int | None, int]:
    """Return the transformers tokenizer, the configured BOS id and the number of embeddings."""
    if llm.pretrained == SMOLLM2:
        tokenizer = load_smollm2_tokenizer()
        return tokenizer, tokenizer.bos_token_id, int(tokenizer.vocab_size)
    if llm.pretrained is None:
        raise ConfigurationError(
            got="a language model from scratch",
            expected="a pretrained one, which has a tokenizer",
            fix="set LlmConfig.pretrained, or build a word tokenizer from the data",
        )
    from transformers import AutoTokenizer

    config = read_text_config(llm.pretrained)
    try:
        tokenizer = AutoTokenizer.from_pretrained(llm.pretrained)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "The language model's tokenizer cannot be read",
            got=f"{llm.pretrained}: {error}",
            expected="tokenizer.json and tokenizer_config.json beside the weights",
            fix="correct LlmConfig.pretrained",
        ) from error
    first = config.bos_token_id
    return tokenizer, first[0] if isinstance(first, list) else first, int(config.vocab_size)


def _token(tokenizer: Any, index: int | None) -> str | None:
    return None if index is None else tokenizer.convert_ids_to_tokens(index)
