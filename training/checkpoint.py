"""Checkpoints of a run: sharded over the ranks, whole or not there at all, read without pickle.

A checkpoint is a folder `step_<8 digits>` with torch's distributed format (one `.distcp` file a
rank and `.metadata`) for the tensors, and `state.json` for everything that is no tensor. Because
tensors are stored by name and slice, any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from training.files import replace_atomically, sync_folder
from training.model.checkpoint import read_json
from vla_align_ros.errors import TrainingError

KEEP = 2
STATE_FILE = "state.json"
_METADATA = ".metadata"
_NAME = re.compile(r"step_(\d{8})")
_OLD_NAME = re.compile(r"step_\d{8}\.pt")
_RUBBISH = re.compile(r"\.(partial|old)_(step_\d{8})")
_PLAIN = {
    "builtins": {"dict", "list", "tuple", "set", "int", "str", "bool", "float"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
        *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write `tensors` (every rank its own) and `state` as step_<step>; keep the newest two.

    Called by all ranks. The folder is filled under another name, flushed to the disk and then
    renamed, so that a process killed at any moment leaves the checkpoint before it as it was. One
    that cannot be written, as on a full disk, is a TrainingError and takes no room.
    """
    path = folder / f"step_{step:08d}"
    partial = folder / f".partial_{path.name}"
    try:
        _write(partial, tensors, state)
    except (CheckpointException, OSError) as error:  # the first is no Exception
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)
        raise _unwritable(folder, step, error) from error
    if _is_first():
        _put_aside(path)
        partial.rename(path)
        sync_folder(folder)
        for old in list_checkpoints(folder)[:-KEEP]:
            _put_aside(old)
        clean_checkpoints(folder)
    _wait_for_others()
    return path


def _write(partial: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Fill the new folder `partial`; all ranks do."""
    if _is_first():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _wait_for_others()
    with warnings.catch_warnings():
        # It says that one process saves alone, which is so.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(
            dict(tensors),
            storage_writer=dcp.FileSystemWriter(partial, sync_files=True, overwrite=True),
            no_dist=not _is_distributed(),
        )
    if _is_first():
        with open(partial / STATE_FILE, "w") as file:
            file.write(_spell(state))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(partial)


def _unwritable(folder: Path, step: int, error: BaseException) -> TrainingError:
    cause = error
    if isinstance(error, CheckpointException):
        cause = next(iter(error.failures.values()))[0]
    above = next((place for place in (folder, *folder.parents) if place.is_dir()), Path())
    free_mb = shutil.disk_usage(above).free / 1e6
    kept = [path.name for path in list_checkpoints(folder)][-1:] or ["the start"]
    return TrainingError(
        f"The checkpoint of step {step} cannot be written",
        got=f"{str(cause) or type(cause).__name__}; {free_mb:.0f} MB are free",
        expected=f"space and permission to write in {folder}",
        fix=f"free some space; the same command goes on from {kept[0]}",
    )


def amend_state(folder: Path, step: int, changes: Mapping[str, Any]) -> None:
    """Replace values in the state of step_<step>, whole or not at all, if that is there.

    Called by all ranks; the first writes.
    """
    path = folder / f"step_{step:08d}" / STATE_FILE
    if _is_first() and path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_text(_spell(read_json(path) | dict(changes)))
        sync_folder(path.parent)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; TrainingError for those of a version before 0.2."""
    if not folder.is_dir():
        return []
    found = sorted(folder.iterdir())
    if old := [path.name for path in found if _OLD_NAME.fullmatch(path.name)]:
        raise TrainingError(
            f"{folder} holds checkpoints of an older version",
            got=", ".join(old),
            expected="folders step_<step>",
            fix="train into another --out, or continue with the version that began the run",
        )
    return [path for path in found if _NAME.fullmatch(path.name)]


def clean_checkpoints(folder: Path) -> None:
    """Delete what a killed process left unfinished. For the first rank alone.

    A newest one that was put aside for another of the same step, which then never came, goes back.
    """
    newest = max((path.name for path in list_checkpoints(folder)), default="")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (left := _RUBBISH.fullmatch(path.name)) is None:
            continue
        kind, name = left.groups()
        if kind == "old" and name > newest:
            path.rename(folder / name)
        else:
            shutil.rmtree(path)


class CheckpointReader:
    """Reads one checkpoint: its plain values, the names of its tensors, and the tensors."""

    def __init__(self, path: Path) -> None:
        """Open it; a damaged one is a TrainingError that says to delete it."""
        self.path = path
        self._storage = _PlainReader(path)
        try:
            self.state: dict[str, Any] = read_json(path / STATE_FILE)
            self.stored: dict[str, TensorStorageMetadata] = {
                name: entry
                for name, entry in self._storage.read_metadata().state_dict_metadata.items()
                if isinstance(entry, TensorStorageMetadata)
            }
        except Exception as error:
            raise self._unreadable(error) from error

    def fill(self, tensors: Mapping[str, Tensor], *, alone: bool = False) -> None:
        """Copy the stored values into `tensors` (shards too), in place.

        All ranks call it, unless this one reads `alone`. A tensor that is not stored, or has
        another shape there, is a TrainingError.
        """
        for name, tensor in tensors.items():
            size = self.stored[name].size if name in self.stored else None
            if size != tensor.shape:
                raise TrainingError(
                    f"{self.path} does not fit the run",
                    got=f"{name} {list(tensor.shape)} in the run",
                    expected="no such tensor" if size is None else f"{list(size)}",
                    fix="continue with the version of this package that began the run",
                )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(
                    dict(tensors),
                    storage_reader=self._storage,
                    no_dist=alone or not _is_distributed(),
                )
        except CheckpointException as error:  # which is no Exception
            cause = next(iter(error.failures.values()))[0]
            raise self._unreadable(cause) from error
        except Exception as error:
            raise self._unreadable(error) from error

    def read(self, prefix: str) -> dict[str, Tensor]:
        """Whole tensors below `prefix`, on the CPU, by what follows it in their names."""
        wanted = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in self.stored.items()
            if name.startswith(prefix)
        }
        self.fill(wanted, alone=True)
        return {name[len(prefix) :]: value for name, value in wanted.items()}

    def _unreadable(self, error: BaseException) -> TrainingError:
        return TrainingError(
            "The checkpoint cannot be read",
            got=f"{self.path}: {str(error) or type(error).__name__}",
            expected="a folder that this package wrote",
            fix=f"delete {self.path.name}; the one before it will be used",
        )


class _PlainUnpickler(pickle.Unpickler):
    """torch pickles the table of contents: only the classes that describe tensors may appear."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = name in _PLAIN.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        )
        if not allowed:
            raise pickle.UnpicklingError(f"{module}.{name} in a checkpoint's table of contents")
        return super().find_class(module, name)


class _PlainReader(dcp.FileSystemReader):
    """torch's reader, whose tables of contents cannot run code; tensors never could."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / _METADATA, "rb") as file:
            metadata: Metadata = _PlainUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _put_aside(path: Path) -> None:
    """Rename at once what is deleted slowly, so that half a folder never has a good name."""
    if path.exists():
        aside = path.with_name(f".old_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def _spell(state: Mapping[str, Any]) -> str:
    return json.dumps(dict(state), indent=1) + "\n"


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_first() -> bool:
    return not _is_distributed() or dist.get_rank() == 0


def _wait_for_others() -> None:
    if _is_distributed():
        dist.barrier()
