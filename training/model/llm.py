"""Any Hugging Face causal language model, built from a configuration or from weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from training.model.config import LlmConfig
from vla_align_ros.errors import ConfigurationError


def build_llm(config: LlmConfig, attention_backend: str, *, pretrained: bool = True) -> Any:
    """Build the model in float32; without `pretrained` only its shape, to load weights into."""
    if config.pretrained is not None and (pretrained or config.config is None):
        return AutoModelForCausalLM.from_pretrained(
            config.pretrained, attn_implementation=attention_backend, dtype=torch.float32
        )
    values = dict(config.config or {})
    try:
        hf = AutoConfig.for_model(values.pop("model_type"), **values)
    except ValueError as error:
        raise ConfigurationError(
            got=f"model_type in {config.config}",
            expected="a type that transformers knows",
            fix="correct LlmConfig.config",
        ) from error
    return AutoModelForCausalLM.from_config(
        hf, attn_implementation=attention_backend, dtype=torch.float32
    )


def drop_lm_head(llm: Any) -> None:
    """Remove the vocabulary output, which parallel decoding never uses."""
    if not llm.config.tie_word_embeddings:
        llm.set_output_embeddings(nn.Identity())


def describe_llm(llm: Any) -> dict[str, Any]:
    """Return the configuration as a JSON-ready dict from which `build_llm` rebuilds the shape."""
    values: dict[str, Any] = llm.config.to_diff_dict()
    for key in ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype"):
        values.pop(key, None)
    return {**values, "model_type": llm.config.model_type, "vocab_size": llm.config.vocab_size}
