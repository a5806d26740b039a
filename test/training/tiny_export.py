"""A tiny run as training leaves it, with a chunk or a token head, to export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_models import IMAGE_PX, STATE_DIM, build, tiny_config, tokens_config

from training.export.source import RunSource
from training.model import GroundingConfig, PrismaticVLA
from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec

HORIZON = 4
WORDS = ["<pad>", "<s>", "<unk>", "put", "the", "carrot", "plate", "on"]
INSTRUCTIONS = ["put the carrot on the plate", "put the plate", "carrot"]


def make_processor(*, tokens: bool = False, state: bool = True, committed: int = 0) -> Processor:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(WORDS[:3])
    rng = np.random.default_rng(0)
    state_names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    values = rng.normal(0, 0.02, (400, STATE_DIM))
    values[:, -1] = rng.random(400)
    state = state and not tokens
    return Processor(
        PolicySpec(
            (CameraSpec("front", 48, 64),),
            StateSpec(state_names) if state else None,
            ActionSpec("base_link", 5.0, 1 if tokens else HORIZON, committed=committed),
        ),
        ImageTransform(size=IMAGE_PX),
        {
            key: Normalizer("quantile", compute_statistics(values))
            for key in (("action", "state") if state else ("action",))
        },
        PromptTokenizer(words.to_str().encode(), max_length=24),
    )


def make_model(**overrides) -> PrismaticVLA:
    return build(tiny_config(grounding=GroundingConfig(layer=1), **overrides))


def make_run(folder: Path, *, tokens: bool = False, model: PrismaticVLA | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    model = model or (build(tokens_config()) if tokens else make_model())
    model.save(folder)
    told, state = model.config.head.committed, model.state_encoder is not None
    make_processor(tokens=tokens, state=state, committed=told).save(folder / "processor")
    (folder / "config.json").write_text(json.dumps({"recipe": "debug", "seed": 3}))
    (folder / "run.json").write_text(json.dumps({"steps": 7, "out": "/home/someone/run"}))
    rng = np.random.default_rng(1)
    arrays = {
        "image_front": rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8),
        "instruction": np.array(INSTRUCTIONS),
    }
    if state and not tokens:
        arrays["state"] = rng.normal(0, 0.02, (3, STATE_DIM)).astype(np.float32)
    if told:
        arrays["committed"] = rng.uniform(-0.03, 0.03, (3, told, 7))  # beyond q99 they are cut
        arrays["committed_count"] = np.array([0, told, told - 1])
    np.savez(folder / "golden_inputs.npz", **arrays)
    return folder


def trace_run(run: Path, folder: Path, *, split_vision: bool = False) -> tuple[GraphSpec, ...]:
    """Write the float32 graphs of a run."""
    return RunSource.open(run).write_graphs(folder, split_vision=split_vision)
