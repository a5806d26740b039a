"""Checkpoints of a run: written whole or not at all, read without executing anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from training.files import replace_atomically
from vla_align_ros.errors import TrainingError

KEEP = 2
_NAME = re.compile(r"step_(\d{8})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as step_<step>.pt durably and keep the newest two."""
    path = folder / f"step_{step:08d}.pt"
    with replace_atomically(path) as partial:
        torch.save(state, partial)
    for old in list_checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are accepted."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(
            "The checkpoint cannot be read",
            got=f"{path}: {error}",
            expected="a file that this package wrote",
            fix=f"delete {path.name}; the one before it will be used",
        ) from error
    return state
