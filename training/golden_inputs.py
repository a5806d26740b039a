"""Held-out observations that a run keeps: to watch its sight on, and to prove its export on."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.dataset import ActionChunkDataset
from training.files import replace_atomically
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import TrainingError

GOLDEN_INPUTS = "golden_inputs.npz"
SAMPLES = 24

Arrays = dict[str, npt.NDArray[Any]]


def choose_frames(data: ActionChunkDataset) -> npt.NDArray[np.int64]:
    """Up to 24 held-out frames in order, of the first data set that holds any out."""
    held_out = data.indices("val")
    first = held_out[data.root_id[held_out] == data.root_id[held_out].min()]
    chosen: npt.NDArray[np.int64] = np.sort(np.random.default_rng(1).permutation(first)[:SAMPLES])
    return chosen


def write_golden_inputs(data: ActionChunkDataset, processor: Processor, path: Path) -> None:
    """Save the observations of `choose_frames`.

    Pictures as the camera gave them, so that a proof goes through the robot's resizing too.
    """
    arrays = gather_inputs(data, processor, choose_frames(data))
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def gather_inputs(data: ActionChunkDataset, processor: Processor, chosen: np.ndarray) -> Arrays:
    """What a robot would give to the policy at the frames `chosen` (N,), as golden samples have it.

    Of committed actions, where the policy takes such, every count in turn, from none on.
    """
    arrays: Arrays = {
        f"image_{processor.spec.cameras[0].name}": data.camera_pictures(chosen),
        "instruction": np.array([data.tasks[i] for i in data.task_id[chosen]]),
    }
    if processor.spec.state is not None:
        arrays["state"] = data.state[chosen].astype(np.float32)
    if told := processor.spec.action.committed:
        chunks, is_pad = data.chunks(chosen)
        arrays["committed"] = chunks[:, :told].astype(np.float64)
        counts = np.arange(len(chosen), dtype=np.int64) % (told + 1)
        arrays["committed_count"] = np.minimum(counts, (~is_pad).sum(axis=1))
    return arrays


def read_golden_inputs(path: Path, processor: Processor) -> Arrays:
    """Read image_<camera> (N, H, W, 3) uint8, state (N, D) float32 and instruction (N,) of a run.

    And `committed` (N, C, 7) float64 with `committed_count` (N,) int64 where the policy takes such.

    Raises:
        TrainingError: if the file is missing, needs pickle, lacks an array or holds no sample.
    """
    names = [f"image_{camera.name}" for camera in processor.spec.cameras] + ["instruction"]
    if processor.spec.state is not None:
        names.append("state")
    if processor.spec.action.committed:
        names += ["committed", "committed_count"]
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            "the run has no usable golden inputs",
            got=f"{path}: {error}",
            expected=f"an .npz file with {', '.join(names)}, which training writes",
            fix="give the folder of a run that `vla-align train` finished",
        ) from error
    if len(arrays["instruction"]) == 0:
        raise TrainingError(
            "the run has no golden inputs",
            got=f"0 samples in {path}",
            expected="1 or more",
            fix="hold out some episodes (data.validation) and train again",
        )
    return arrays
