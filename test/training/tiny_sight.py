"""A processor, scenes and labelled pictures that fit the tiny networks of `tiny_models`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tiny_data import ACTION_NAMES, SIDE, STATE_NAMES, TASKS, tokenizer_bytes
from tiny_models import IMAGE_PX

from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec


def sight_processor(*, cameras: tuple[str, ...] = ("front",), state: bool = True) -> Processor:
    rng = np.random.default_rng(0)
    normalizers = {
        "action": Normalizer("quantile", compute_statistics(rng.normal(size=(64, 7)))),
        "state": Normalizer("quantile", compute_statistics(rng.normal(size=(64, 7)))),
    }
    if not state:
        normalizers.pop("state")
    assert len(ACTION_NAMES) == 7
    return Processor(
        spec=PolicySpec(
            cameras=tuple(CameraSpec(name, SIDE, SIDE) for name in cameras),
            state=StateSpec(STATE_NAMES) if state else None,
            action=ActionSpec(frame="base_link", rate_hz=5.0, horizon=4),
        ),
        image_transform=ImageTransform(size=IMAGE_PX),
        normalizers=normalizers,
        tokenizer=PromptTokenizer(tokenizer_bytes(), max_length=24),
    )


def sight_scenes(processor: Processor, count: int = 4, seed: int = 0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [
        Observation(
            images={
                camera.name: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                for camera in processor.spec.cameras
            },
            state=None if processor.spec.state is None else rng.normal(size=7).astype(np.float32),
            instruction=TASKS[number % len(TASKS)],
            stamp_s=0.0,
        )
        for number in range(count)
    ]


def write_pictures(root: Path, labels: tuple[str, ...] = ("disc", "box"), each: int = 6) -> Path:
    """Transparent drawings, one folder a label, each of another colour."""
    for label in labels:
        (root / label).mkdir(parents=True)
        for number in range(each):
            image = Image.new("RGBA", (64, 48))
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if label == "disc" else draw.rectangle
            shape((8, 8, 40, 40), fill=(30 * number, 200, 255 - 30 * number, 255))
            image.save(root / label / f"{number}.png")
    return root
