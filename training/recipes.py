"""Named recipes: functions that return a whole run configuration, to be changed by `--set`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from training.alignment import AlignmentConfig
from training.config import DataConfig, LossConfig, OptimConfig, RunConfig
from training.model import (
    GroundingConfig,
    HeadConfig,
    LlmConfig,
    ProjectorConfig,
    StateConfig,
    VisionConfig,
    VlaConfig,
)
from vla_align_ros.errors import ConfigurationError

HORIZON = 8


def tabletop_align() -> RunConfig:
    """The shipped policy: a small aligned student for the simulated table-top, on two CPU cores."""
    return _tabletop("tabletop_align", alignment=AlignmentConfig(weight=0.2, hidden=512))


def tabletop_default() -> RunConfig:
    """The same student fine-tuned without alignment (lambda 0): the paper's Default."""
    return _tabletop("tabletop_default", alignment=AlignmentConfig(weight=0.0, hidden=512))


def tabletop_freeze() -> RunConfig:
    """The same student with its vision tower frozen throughout: the paper's Freeze."""
    config = tabletop_default()
    optim = dataclasses.replace(config.optim, vision_lr=None)
    return dataclasses.replace(config, recipe="tabletop_freeze", optim=optim)


def debug_cpu() -> RunConfig:
    """Everything that `tabletop_align` does, on a tiny student, in under a minute."""
    tower = {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    }
    return RunConfig(
        recipe="debug_cpu",
        model=VlaConfig(
            vision=(VisionConfig(source="transformers", image_size=56, backbone=tower),),
            llm=LlmConfig(_llama(width=32, layers=2)),
            projector=ProjectorConfig(position_embedding=True),
            head=HeadConfig(horizon=HORIZON),
            state=StateConfig(),
            grounding=GroundingConfig(layer=1, width=16),
        ),
        data=DataConfig(image_size=56, validation=0.2),
        optim=OptimConfig(
            steps=40, batch_size=8, vision_from_step=20, vision_warmup_steps=5, warmup_steps=5
        ),
        alignment=AlignmentConfig(hidden=64),
        loss=LossConfig(grounding=0.05),
        threads=1,
        evaluate_every=20,
        checkpoint_every=20,
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (tabletop_align, tabletop_default, tabletop_freeze, debug_cpu)
}


def find_recipe(name: str) -> RunConfig:
    """The configuration of the recipe called `name`; an unknown name lists the valid ones."""
    if name not in RECIPES:
        raise ConfigurationError(
            "No such recipe",
            got=repr(name),
            expected="one of " + ", ".join(RECIPES),
            fix="pass --recipe with one of these names",
        )
    return RECIPES[name]()


def _tabletop(name: str, alignment: AlignmentConfig) -> RunConfig:
    return RunConfig(
        recipe=name,
        model=VlaConfig(
            vision=(VisionConfig(source="embedded", image_size=168, layers=6),),
            llm=LlmConfig(_llama(width=256, layers=4)),
            projector=ProjectorConfig(position_embedding=True),
            head=HeadConfig(horizon=HORIZON),
            state=StateConfig(),
            grounding=GroundingConfig(layer=2, to_actions=True),
            attention="bidirectional",
        ),
        data=DataConfig(image_size=168),
        optim=OptimConfig(
            steps=1500,
            batch_size=64,
            lr=6e-4,
            vision_lr=2e-5,
            vision_from_step=1350,
            vision_warmup_steps=40,
        ),
        alignment=alignment,
        loss=LossConfig(grounding=0.05),
        evaluate_every=250,
        checkpoint_every=250,
    )


def _llama(width: int, layers: int) -> dict[str, Any]:
    """A small Llama from scratch; its vocabulary is set by the data's tokenizer."""
    heads = max(1, width // 64)
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": True,
    }
