"""Weights on disk: safetensors and JSON, so written that a crash leaves the last copy whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from vla_align_ros.errors import TrainingError

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers (tied tensors once) through a temporary file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_model(model, str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from `path`; a missing, unknown or misshapen tensor is a TrainingError."""
    if not path.is_file():
        raise TrainingError(
            got=f"no file {path}",
            expected="weights written by PrismaticVLA.save",
            fix="give the folder of a finished training run",
        )
    try:
        load_model(model, str(path), strict=True)
    except Exception as error:
        raise TrainingError(
            got=f"weights in {path} that do not fit the model: {error}",
            expected=f"the tensors that {DESCRIPTION} beside them describes",
            fix="do not mix the files of two runs",
        ) from error


def write_json(values: dict[str, object], path: Path) -> None:
    """Write `values` to `path` through a temporary file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; an absent or broken file is a TrainingError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            got=f"{path}: {error}",
            expected="a JSON object written by PrismaticVLA.save",
            fix="give the folder of a finished training run",
        ) from error
    if not isinstance(values, dict):
        raise TrainingError(
            got=f"{path} holds {type(values).__name__}",
            expected="a JSON object",
            fix="give the folder of a finished training run",
        )
    return values
