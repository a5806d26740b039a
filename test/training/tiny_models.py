"""Networks small enough to test in milliseconds, in the shapes that real ones have."""

from __future__ import annotations

from typing import Any

import torch

from training.model import HeadConfig, LlmConfig, PrismaticVLA, StateConfig, VisionConfig, VlaConfig

VOCABULARY = 320
IMAGE_PX = 42
GRID = 3
STATE_DIM = 7


def tiny_vision(width: int = 24, **overrides: Any) -> VisionConfig:
    backbone = {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": IMAGE_PX,
        "use_mask_token": False,
    }
    return VisionConfig(source="transformers", image_size=IMAGE_PX, backbone=backbone, **overrides)


def tiny_llm(layers: int = 3, **overrides: Any) -> LlmConfig:
    values = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    return LlmConfig(config={**values, **overrides})


def tiny_config(**overrides: Any) -> VlaConfig:
    values: dict[str, Any] = {
        "vision": (tiny_vision(),),
        "llm": tiny_llm(),
        "head": HeadConfig(horizon=4),
        "state": StateConfig(STATE_DIM),
    }
    return VlaConfig(**{**values, **overrides})


def tokens_config(**overrides: Any) -> VlaConfig:
    return tiny_config(head=HeadConfig(kind="tokens", horizon=1), state=None, **overrides)


def build(config: VlaConfig, seed: int = 0) -> PrismaticVLA:
    torch.manual_seed(seed)
    return PrismaticVLA(config).eval()


def tiny_inputs(
    batch: int = 2, channels: int = 3, length: int = 9, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A batch of prompts: the first fills `length`, each next one is a token shorter."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(batch):
        mask[row, length - row :] = 0
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    return {
        "pixel_values": torch.randn(batch, channels, IMAGE_PX, IMAGE_PX, generator=generator),
        "input_ids": ids * mask,
        "attention_mask": mask,
        "state": torch.randn(batch, STATE_DIM, generator=generator),
    }
