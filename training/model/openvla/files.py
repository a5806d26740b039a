"""A published checkpoint's folder: found or fetched, its documents and its safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_align_ros.errors import ConfigurationError, TrainingError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
STATISTICS = "dataset_statistics.json"

_FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.py", "*.md", "LICENSE*"]
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return a checkpoint's folder: `source` itself, or a hub repository's local copy.

    Nothing in it is ever run: its Python files are kept only to be passed on.

    Raises:
        ConfigurationError: if it is neither a folder nor a repository that can be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if looks_like_path(str(source)):
        raise ConfigurationError(
            "checkpoint is not found",
            got=f"no folder {source}",
            expected="a folder, or a repository such as openvla/openvla-7b",
            fix="correct the path",
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_FETCHED))
    except Exception as error:  # the hub raises errors of its own, of requests and of the system
        beside = f"; {folder.parent}/ has no {folder.name} either" if folder.parent.is_dir() else ""
        raise ConfigurationError(
            "checkpoint cannot be fetched",
            got=f"{source}: {type(error).__name__}: {str(error).splitlines()[0]}{beside}",
            expected="a public repository and a connection, or a local folder",
            fix=f"hf download {source}, and give the folder that it prints",
        ) from error


def looks_like_path(text: str) -> bool:
    """Whether `text`, which is no folder, was meant as one and not as a repository of a hub."""
    return text.count("/") != 1 or text.startswith((".", "/", "~"))


def read_document(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder; a missing or broken one is a ConfigurationError."""
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"holds {type(values).__name__}, no object")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "a file of the checkpoint cannot be read",
            got=f"{folder / name}: {error}",
            expected="a JSON object, as OpenVLA's checkpoints have",
            fix="fetch the checkpoint again",
        ) from error
    return values


def write_document(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object in the form that transformers gives its configurations."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_index(folder: Path) -> dict[str, str] | None:
    """Return {tensor: file} of a folder's index of shards; None if it has none.

    ConfigurationError if it is broken, or names a file that does not lie beside it: whoever writes
    the checkpoint again would write there.
    """
    if not (folder / INDEX).is_file():
        return None
    found = read_document(folder, INDEX).get("weight_map")
    index = found if isinstance(found, dict) else {}
    strange = [p for p in index.values() if not isinstance(p, str) or p != Path(p).name]
    if strange or not index:
        raise ConfigurationError(
            "index of the checkpoint names no files beside it",
            got=strange[:4] or "none",
            expected=f"weight_map in {INDEX}: the name of a file for every tensor",
            fix="fetch the checkpoint again",
        )
    return index


@dataclass(frozen=True, slots=True)
class Shards:
    """The tensors of a checkpoint by published name: where they lie, shape and dtype."""

    folder: Path
    files: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Read tensors as they are stored, file by file."""
        wanted: dict[str, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for file, members in wanted.items():
            with safe_open(self.folder / file, framework="pt") as opened:
                found.update({name: opened.get_tensor(name) for name in members})
        return found


def open_shards(folder: Path) -> Shards:
    """List a folder's tensors from their headers, without reading them.

    Raises:
        ConfigurationError: if there are none, a shard is missing or broken, or the index differs
            from what the shards hold.
    """
    index = read_index(folder)
    if index is not None:
        names = sorted(set(index.values()))
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        raise ConfigurationError(
            "checkpoint has no weights",
            got=str(folder),
            expected=f"{INDEX} and its shards, or {SINGLE}",
            fix="fetch the checkpoint again",
        )
    files: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name in names:
        for key, shape, dtype in _read_header(folder / name):
            files[key], shapes[key], dtypes[key] = name, shape, dtype
    if index is not None and index != files:
        differing = sorted(set(index.items()) ^ set(files.items()))[:4]
        raise ConfigurationError(
            "index of the checkpoint differs from its shards",
            got=differing,
            expected="every tensor in the file that the index names",
            fix="fetch the checkpoint again",
        )
    return Shards(folder, files, shapes, dtypes)


def _read_header(path: Path) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return [
                (name, tuple(part.get_shape()), _DTYPES[part.get_dtype()])
                for name, part in slices.items()
            ]
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            "a shard of the checkpoint cannot be read",
            got=f"{path}: {error}",
            expected="a whole safetensors file",
            fix="fetch the checkpoint again",
        ) from error
    except KeyError as error:
        raise TrainingError(
            "a shard holds numbers of a kind that training does not read",
            got=f"{error.args[0]} in {path}",
            expected=" or ".join(_DTYPES),
            fix="take the checkpoint before it was quantised",
        ) from error
