"""Small datasets and a processor that fits them, shared by the tests of training data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from training.data.layout import DatasetSchema, EpisodeRecord, Feature
from training.data.schema import (
    ACTION_KEY,
    CHUNK_KEY,
    ENVIRONMENT_KEY,
    SEED_NOTE,
    STATE_KEY,
    VIDEO_KEY,
)
from training.data.writer import LeRobotWriter
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, Statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec

STATE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
HORIZON = 8
SIDE = 48
TASKS = ("put the carrot on the plate", "put the corn on the tray", "put the corn on the plate")

SCHEMA = DatasetSchema(
    fps=5,
    robot_type="test_arm",
    features={
        VIDEO_KEY: Feature("video", (SIDE, SIDE, 3), ("height", "width", "channels")),
        STATE_KEY: Feature("float32", (7,), STATE_NAMES),
        ENVIRONMENT_KEY: Feature("float32", (3,), ("object_x", "object_y", "held")),
        ACTION_KEY: Feature("float32", (7,), ACTION_NAMES),
        CHUNK_KEY: Feature("float32", (HORIZON, 7)),
    },
)


def make_record(number: int, *, seed: int = 0) -> EpisodeRecord:
    """Episode `number`: smooth random pictures, random numbers, 2 to 6 frames."""
    rng = np.random.default_rng([seed, number])
    steps = int(rng.integers(2, 7))
    ramp = np.linspace(0.0, 1.0, SIDE)
    low, high = rng.uniform(0, 255, (2, steps, 1, 1, 3))
    picture = low + (high - low) * ramp[None, :, None, None] * np.ones((1, 1, SIDE, 1))
    every = rng.normal(scale=0.05, size=(steps + HORIZON, 7)).astype(np.float32)
    every[:, 6] = rng.integers(0, 2, len(every))
    state = rng.normal(size=(steps, 7)).astype(np.float32)
    state[:, 6] = np.abs(np.tanh(state[:, 6]))  # a gripper's fraction
    return EpisodeRecord(
        task=TASKS[number % len(TASKS)],
        images={VIDEO_KEY: picture.astype(np.uint8)},
        columns={
            STATE_KEY: state,
            ENVIRONMENT_KEY: rng.normal(size=(steps, 3)).astype(np.float32),
            ACTION_KEY: every[:steps],
            CHUNK_KEY: np.stack([every[t : t + HORIZON] for t in range(steps)]),
        },
        notes={SEED_NOTE: 1000 * seed + number},
    )


def write_dataset(
    root: Path, episodes: int, *, seed: int = 0, episodes_per_file: int = 3
) -> list[EpisodeRecord]:
    """Write episodes 0..n-1 to `root` and return them."""
    records = [make_record(number, seed=seed) for number in range(episodes)]
    writer = LeRobotWriter(root, SCHEMA, episodes_per_file=episodes_per_file)
    for record in records:
        writer.append(record)
    writer.flush()
    return records


def tokenizer_bytes() -> bytes:
    """A word-level tokenizer.json that knows the words of `TASKS` and of the prompt."""
    text = "In: What action should the robot take to put carrot corn plate tray on? Out:"
    words = re.findall(r"\w+|[^\w\s]+", text)
    vocabulary = {
        word: index for index, word in enumerate(dict.fromkeys(["<s>", "<pad>", "<unk>", *words]))
    }
    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(["<s>", "<pad>", "<unk>"])
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    return json.dumps(content).encode()


def make_processor(
    statistics: dict[str, Statistics], *, size: int = 32, committed: int = 0
) -> Processor:
    """A processor for `SCHEMA` with pictures of `size` pixels."""
    return Processor(
        spec=PolicySpec(
            cameras=(CameraSpec("front", SIDE, SIDE),),
            state=StateSpec(STATE_NAMES),
            action=ActionSpec("base_link", 5.0, HORIZON, committed=committed),
        ),
        image_transform=ImageTransform(size=size, crop=0.9),
        normalizers={key: Normalizer("quantile", value) for key, value in statistics.items()},
        tokenizer=PromptTokenizer(tokenizer_bytes(), max_length=24),
    )
