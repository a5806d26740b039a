"""Any Hugging Face causal language model, built from a configuration or from weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from training.fingerprint import ORIGIN_KEYS
from training.model.config import LlmConfig
from training.model.quiet import quiet_loading
from training.model.sequence import Sequence
from training.model.smollm import SMOLLM2, load_smollm2
from vla_align_ros.errors import ConfigurationError


def build_llm(config: LlmConfig, attention_backend: str, *, pretrained: bool = True) -> Any:
    """Build the model in float32; without `pretrained` only its shape, to load weights into.

    Of a multimodal checkpoint the language model alone is taken.

    Raises:
        ConfigurationError: an unknown type, weights that are absent or do not fill the model, or an
            attention backend that the model does not have.
    """
    if config.pretrained is not None and (pretrained or config.config is None):
        if config.pretrained == SMOLLM2:
            return load_smollm2(attention_backend)
        return _load_pretrained(config.pretrained, attention_backend)
    values = dict(config.config or {})
    try:
        hf = AutoConfig.for_model(values.pop("model_type"), **values)
    except ValueError as error:
        raise ConfigurationError(
            got=f"model_type in {config.config}",
            expected="a type that transformers knows",
            fix="correct LlmConfig.config",
        ) from error
    return _create(AutoModelForCausalLM.from_config, hf, attention_backend)


def _load_pretrained(source: str, attention_backend: str) -> Any:
    hf = read_text_config(source)
    try:
        with quiet_loading():
            model, info = _create(
                AutoModelForCausalLM.from_pretrained,
                source,
                attention_backend,
                config=hf,
                output_loading_info=True,
            )
    except OSError as error:
        raise _unreadable(source, error) from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ConfigurationError(
            "The weights do not fill the language model",
            got=f"{source} without {absent[:3]} ({len(absent)} in all)",
            expected=f"every tensor of a {hf.model_type}",
            fix="give a checkpoint that holds this causal language model",
        )
    return model


def _create(make: Any, source: Any, attention_backend: str, **options: Any) -> Any:
    try:
        return make(source, attn_implementation=attention_backend, dtype=torch.float32, **options)
    except ValueError as error:
        if "attention" not in str(error):
            raise
        raise ConfigurationError(
            "The language model has no such attention",
            got=f"attention_backend {attention_backend!r}: {error}",
            expected="a backend that computes what the model was trained with",
            fix='set VlaConfig.attention_backend to "eager"',
        ) from error


def read_text_config(source: str) -> Any:
    """Return the Hugging Face configuration of the language model at a path or hub name."""
    try:
        return AutoConfig.from_pretrained(source).get_text_config(decoder=True)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        "The pretrained language model cannot be read",
        got=f"{source}: {error}",
        expected="a folder or hub name with config.json and safetensors weights",
        fix="correct LlmConfig.pretrained",
    )


def drop_lm_head(llm: Any, *, unless: bool = False) -> None:
    """Remove the vocabulary output, which parallel decoding never uses, unless it is kept."""
    if not (unless or llm.config.tie_word_embeddings):
        llm.set_output_embeddings(nn.Identity())


def run_trunk(llm: Any, seq: Sequence, *, hidden_states: bool) -> Any:
    """Run the blocks on a laid-out batch; returns transformers' output, states (B, S, D)."""
    check_window(llm, seq.embeds.shape[1])
    return llm.base_model(
        inputs_embeds=seq.embeds,
        attention_mask=seq.attend,
        position_ids=seq.positions,
        use_cache=False,
        output_hidden_states=hidden_states,
    )


def check_window(llm: Any, length: int) -> None:
    """Refuse a sequence that is longer than the sliding attention of some layers (Gemma 2, 3).

    Up to that length a sliding mask equals the full one, which is all that is built here.
    """
    window = getattr(llm.config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(llm.config, "layer_types", None) or ())
    if slides and window is not None and length > window:
        raise ConfigurationError(
            "The sequence is longer than the language model's sliding attention",
            got=f"{length} tokens of pictures, words and actions",
            expected=f"at most {window} for this {llm.config.model_type}",
            fix="use fewer cameras, fewer patches a picture or another language model",
        )


def vocabulary_logits(llm: Any, states: Tensor) -> Tensor:
    """Map final hidden states (..., D) to logits (..., V) as the model's own forward does.

    Gemma 2 and 3 squash logits softly (`final_logit_softcapping`).
    """
    head = llm.get_output_embeddings()
    if head is None or isinstance(head, nn.Identity):
        raise ConfigurationError(
            got="a language model whose vocabulary output was dropped",
            expected="one that can still speak",
            fix="set LlmConfig.keep_lm_head",
        )
    logits: Tensor = head(states)
    cap = getattr(llm.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def describe_llm(llm: Any) -> dict[str, Any]:
    """Return the configuration as a JSON-ready dict from which `build_llm` rebuilds the shape."""
    values: dict[str, Any] = llm.config.to_diff_dict()
    for key in ORIGIN_KEYS:
        values.pop(key, None)
    return {**values, "model_type": llm.config.model_type, "vocab_size": llm.config.vocab_size}
