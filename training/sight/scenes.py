"""The fixed scenes that a watch looks at: held-out observations that the run folder keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.golden_inputs import read_golden_inputs
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor


def scenes_from_golden(path: Path, processor: Processor) -> list[Observation]:
    """Read a run's golden_inputs.npz as observations.

    Raises:
        TrainingError: if the file is missing or lacks an array (see `training.golden_inputs`).
    """
    return list(iterate_observations(read_golden_inputs(path, processor), processor.spec))


def resize_scenes(scenes: Sequence[Observation], processor: Processor) -> NDArray[np.uint8]:
    """Pictures at the model's size, as a teacher gets them.

    (B, S, S, 3) uint8 RGB, or (B, cameras, S, S, 3) for several cameras, in the spec's order.
    """
    cameras = [camera.name for camera in processor.spec.cameras]
    resize = processor.image_transform.resize
    pictures = np.stack([[resize(s.images[name]) for name in cameras] for s in scenes])
    return pictures[:, 0] if len(cameras) == 1 else pictures


def fingerprint_scenes(scenes: Sequence[Observation]) -> str:
    """Hash of pictures, states and words, 16 hex digits."""
    digest = hashlib.sha256()
    for scene in scenes:
        for name, image in scene.images.items():
            digest.update(name.encode() + np.ascontiguousarray(image).tobytes())
        digest.update(b"" if scene.state is None else scene.state.tobytes())
        digest.update(scene.instruction.encode())
    return digest.hexdigest()[:16]
