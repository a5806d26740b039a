"""Weights on disk: safetensors and JSON, so written that a crash leaves the last copy whole."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from training.files import replace_atomically
from vla_align_ros.errors import ConfigurationError, TrainingError

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
OPENVLA_FOLDER = "openvla"
"""Of a run that started from an OpenVLA checkpoint: its weights, in the published layout."""


def holds_model(folder: str | Path | None) -> bool:
    """Whether a folder is one that `PrismaticVLA.save` wrote, as a finished run's is."""
    return folder is not None and (Path(folder).expanduser() / DESCRIPTION).is_file()


def find_weights(source: str) -> str:
    """What holds the weights that `source` names: a folder by its absolute path, or a repository.

    Of a finished run that started from an OpenVLA checkpoint it is the one that the run left.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source
    if not holds_model(folder) and (folder / OPENVLA_FOLDER).is_dir():
        folder /= OPENVLA_FOLDER
    elif not holds_model(folder) and (folder / "checkpoints").is_dir():
        raise ConfigurationError(
            "The run has no weights yet",
            got=f"neither {DESCRIPTION} nor {OPENVLA_FOLDER}/ in {folder}",
            expected="a finished run",
            fix=f"let it finish, or `vla-align consolidate {folder}`",
        )
    return str(folder.resolve())


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers (tied tensors once) through a temporary file."""
    with replace_atomically(path) as temporary:
        save_model(model, str(temporary))


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
    text = json.dumps(values, indent=1, sort_keys=True) + "\n"
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
