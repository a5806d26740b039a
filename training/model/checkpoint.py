"""Weights on disk: safetensors and JSON, so written that a crash leaves the last copy whole."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from training.files import replace_atomically, told_as_oserror
from vla_align_ros.errors import ConfigurationError, TrainingError

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
OPENVLA_FOLDER = "openvla"
"""Of a run that started from an OpenVLA checkpoint: its weights, in the published layout."""
_CONFIG = "config.json"  # a run's, and that of the published layout


def holds_model(folder: str | Path | None) -> bool:
    """Whether a folder is one that `PrismaticVLA.save` wrote, as a finished run's is."""
    return folder is not None and (Path(folder).expanduser() / DESCRIPTION).is_file()


def find_network(run: str | Path) -> Path | None:
    """The folder that describes a run's whole network: its own, or its openvla/; None if neither.

    An adapter alone in openvla/ is none. Whatever asks where a run's weights lie asks here.
    """
    run = Path(run).expanduser()
    if holds_model(run):
        return run
    published = run / OPENVLA_FOLDER
    return published if (published / _CONFIG).is_file() else None


def is_consolidated(run: Path) -> bool:
    """Whether a run's folder has the weights of its whole network."""
    found = find_network(run)  # openvla/ appears whole, or not at all
    return found is not None and (found != run or (run / WEIGHTS).is_file())


def find_weights(source: str) -> str:
    """What holds the weights that `source` names: a folder by its absolute path, or a repository.

    Of a finished run that started from an OpenVLA checkpoint it is the one that the run left.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source
    found = find_network(folder)
    if found is None and (folder / "checkpoints").is_dir():
        apart = (folder / OPENVLA_FOLDER).is_dir()
        raise ConfigurationError(
            "The run has no weights of a whole network" if apart else "The run has no weights yet",
            got=f"an adapter alone in {folder / OPENVLA_FOLDER}"
            if apart
            else f"neither {DESCRIPTION} nor {OPENVLA_FOLDER}/ in {folder}",
            expected="a finished run",
            fix=("" if apart else "let it finish, or ") + f"`vla-align consolidate {folder}`",
        )
    return str((found or folder).resolve())


def find_moved(base: str, run: Path) -> str:
    """The base of a run: as recorded, or beside the run where both were moved together."""
    path = Path(base)
    if not path.is_absolute() or path.is_dir():
        return base
    inner = path.name == OPENVLA_FOLDER
    names = [*([f"{path.parent.name}/{path.name}"] if inner else []), path.name]
    beside = [run.resolve().parent / name for name in names]
    return next((str(folder) for folder in beside if folder.is_dir()), base)


def is_moved(recorded: str, asked: str) -> bool:
    """Whether the folder `asked` is called as the base `recorded`, which is no folder now."""
    old, new = Path(recorded).expanduser(), Path(asked)
    if old.is_dir() or not new.is_dir():
        return False
    if new.name == OPENVLA_FOLDER and (new.parent / _CONFIG).is_file():  # in a run
        new = new.parent
        old = old.parent if old.name == OPENVLA_FOLDER else old
    return old.name == new.name


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers (tied tensors once) through a temporary file."""
    with replace_atomically(path) as temporary, told_as_oserror(path):
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


def check_finite(what: str, value: Tensor) -> None:
    """Refuse to write a tensor that holds NaN or infinity; TrainingError names it by `what`."""
    if not bool(value.isfinite().all()):
        raise TrainingError(
            f"{what} is not finite",
            got="NaN or infinity",
            expected="finite numbers",
            fix="go back to an earlier checkpoint",
        )


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
