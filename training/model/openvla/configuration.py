"""OpenVLA's config.json as our VlaConfig: the few facts that the file leaves to its code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from training.model.config import HeadConfig, LlmConfig, ProjectorConfig, VisionConfig, VlaConfig
from training.model.openvla.keys import TOWERS, tower_depth
from training.model.timm_vit import TimmVitConfig
from vla_align_ros.errors import ConfigurationError

TIMM_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TimmVitConfig(
        embed_dim=1024, depth=24, num_heads=16, mlp_hidden=4096, registers=4, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": TimmVitConfig(
        embed_dim=1152, depth=27, num_heads=16, mlp_hidden=4304, class_token=False
    ),
}
"""The towers by timm name, as timm 0.9.10 builds them (later releases change So400m's GELU)."""

LLAMA_DEFAULTS: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
"""What text_config leaves out: LlamaConfig's defaults in transformers 4.40.1, written down so that
no later release moves them. OpenVLA's epsilon is this 1e-6, not Llama 2's 1e-5."""

_LLAMA_KEYS = {*LLAMA_DEFAULTS, "pad_token_id", "bos_token_id", "eos_token_id", "rope_theta"}


def openvla_7b_json() -> dict[str, Any]:
    """Return openvla/openvla-7b's config.json, but for norm_stats and what names code."""
    return {
        "model_type": "openvla",
        "use_fused_vision_backbone": True,
        "timm_model_ids": list(TIMM_TOWERS),
        "timm_override_act_layers": [None, None],
        "image_sizes": [224, 224],
        "image_resize_strategy": "resize-naive",
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
    }


def openvla_config(
    config_json: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    attention_backend: Literal["eager", "sdpa"] = "sdpa",
) -> VlaConfig:
    """Describe an OpenVLA checkpoint as a PrismaticVLA with the tokens head.

    Args:
        config_json: the published file's content (openvla-7b and its fine-tuned offspring; one
            tower or two).
        shapes: the checkpoint's tensors by published name; they then overrule the widths and
            depths that the timm names stand for.
        attention_backend: of the language model.

    Raises:
        ConfigurationError: if a part of it is of a kind that is not supported.
    """
    try:
        names = list(config_json["timm_model_ids"])
        sizes = [int(size) for size in config_json["image_sizes"]]
        text = dict(config_json["text_config"])
        bins = int(config_json.get("n_action_bins", 256))
        padding = int(config_json.get("pad_to_multiple_of", 64))
        overrides = list(config_json.get("timm_override_act_layers") or [None] * len(names))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            "config.json is none of OpenVLA's",
            got=f"{type(error).__name__}: {error}",
            expected="timm_model_ids, image_sizes and text_config",
            fix="give the folder of an OpenVLA checkpoint in Hugging Face layout",
        ) from error
    if any(override is not None for override in overrides):
        raise _unsupported("timm_override_act_layers", overrides, "null for every tower")
    llm = _describe_llm(text)
    return VlaConfig(
        vision=tuple(
            _describe_tower(name, size, prefix, shapes)
            for name, size, prefix in zip(names, sizes, TOWERS[: len(names)], strict=True)
        ),
        llm=LlmConfig(config=llm),
        projector=ProjectorConfig("fused_gelu" if len(names) > 1 else "linear_gelu"),
        head=HeadConfig(
            kind="tokens", horizon=1, bins=bins, token_vocab_size=llm["vocab_size"] - padding
        ),
        attention_backend=attention_backend,
    )


def _describe_llm(text: dict[str, Any]) -> dict[str, Any]:
    if text.get("model_type", "llama") != "llama":
        raise _unsupported("language model", text["model_type"], "llama (OpenVLA's Llama 2)")
    if text.get("rope_scaling") is not None:
        raise _unsupported("rope_scaling", text["rope_scaling"], "null")
    return {**LLAMA_DEFAULTS, **{key: text[key] for key in sorted(_LLAMA_KEYS & set(text))}}


def _describe_tower(
    name: str, image_size: int, prefix: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> VisionConfig:
    if name not in TIMM_TOWERS:
        raise _unsupported("vision tower", name, " or ".join(TIMM_TOWERS))
    tower = TIMM_TOWERS[name]
    if shapes is not None:
        tower = _measure_tower(tower, prefix, shapes)
    return VisionConfig(
        source="timm_vit",
        image_size=image_size,
        layers=tower.depth - 1,  # the second-to-last block's output, and nothing after it
        select_layers=(-1,),
        backbone=dataclasses.asdict(tower),
    )


def _measure_tower(
    known: TimmVitConfig, prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> TimmVitConfig:
    """Read a tower's sizes from its tensors; the number of heads cannot be read from them."""
    try:
        patches = shapes[f"{prefix}patch_embed.proj.weight"]
        hidden = shapes[f"{prefix}blocks.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise ConfigurationError(
            "checkpoint lacks a vision tower that its configuration names",
            got=f"no tensor {error.args[0]}",
            expected="OpenVLA's tensors",
            fix="fetch the checkpoint again",
        ) from error
    registers = shapes.get(f"{prefix}reg_token")
    return dataclasses.replace(
        known,
        embed_dim=patches[0],
        patch_size=patches[-1],
        depth=tower_depth(shapes, prefix),
        mlp_hidden=hidden,
        registers=0 if registers is None else registers[1],
    )


def _unsupported(what: str, got: object, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} of this checkpoint is not supported",
        got=repr(got),
        expected=expected,
        fix="take openvla/openvla-7b or a checkpoint fine-tuned from it",
    )
