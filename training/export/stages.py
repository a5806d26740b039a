"""Steps that are done once: each result lies under a key of all that it depends on, code included.

An export that is killed, or runs out of disk, goes on where it was when it is called again. A
result is there whole or not at all, and is looked at by hash before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from training.export.makers import describe_makers
from training.files import hold_lock, sync_folder
from vla_align_ros.contract.files import (
    canonical_json,
    hash_file,
    read_json_object,
    readable_json,
    sync_path,
    write_durably,
)
from vla_align_ros.errors import ContractError, ExportError, VlaAlignError

_INDEX = "stage.json"


class Stages:
    """Results of one export's steps, in a folder of its own.

    Args:
        root: the folder, made if need be. say: what to do with a line about each step.

    Attributes:
        keep: set it, and a refusal leaves the results for the next call.
    """

    def __init__(self, root: Path, say: Callable[[str], None] = print) -> None:
        self.root = root
        self.reused: list[str] = []
        self.say = say
        self.keep = False
        self._made: set[Path] = set()

    def run(self, name: str, facts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Return the folder of a step's files, made by `make` unless it lies there whole.

        Args:
            name: of the step. facts: JSON of all that the result depends on beside this package's
                code and the libraries; give `digest` of an earlier step's folder for its files.
            make: fills an empty folder.

        Raises:
            ExportError: if the disk is full or not writable; what is whole stays for the next call.
        """
        known = {"step": name, "makers": describe_makers(), **facts}
        key = hashlib.sha256(canonical_json(known)).hexdigest()[:16]
        target = self.root / f"{name}-{key}"
        if target in self._made:
            return target
        if self._is_whole(target):
            self.say(f"{name}: taken from an interrupted export")
            self.reused.append(name)
            self._made.add(target)
            return target
        self.say(f"{name} ...")
        partial = self.root / f".{target.name}.{os.getpid()}"
        try:
            shutil.rmtree(target, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            _write_index(partial)
            partial.rename(target)
            sync_folder(self.root)
        except OSError as cause:
            raise ExportError(
                f"the step {name!r} cannot be kept",
                got=cause,
                expected=f"space and permission to write in {self.root.parent}",
                fix="free some space and call the same command again: it goes on from here",
            ) from cause
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._made.add(target)
        return target

    def _is_whole(self, folder: Path) -> bool:
        try:
            files = read_json_object(folder / _INDEX)
            return files == _hash_files(folder)
        except (ContractError, OSError):
            return False


def digest(folder: Path) -> str:
    """Return what stands for the content of a step's folder."""
    return hash_file(folder / _INDEX)[0]


@contextlib.contextmanager
def open_stages(out: Path, say: Callable[[str], None] = print) -> Iterator[Stages]:
    """Give the steps of an export to `out`, for one process at a time.

    They are dropped when the block ends well or refuses (an error of this package, other than of
    the disk, if `keep` was not set), and kept when it is interrupted. Whoever waited for another
    process looks for what that one made in the block.

    Raises:
        ExportError: also for an OSError of the block, as that of a full disk.
    """
    if not out.name:
        raise ExportError(
            "a bundle cannot lie there",
            got=str(out),
            expected="a folder with a name, which others can lie beside",
            fix="correct --out",
        )
    root = out.with_name(f".{out.name}.stages")
    try:
        # The lock lies beside the folder, which goes while it is held.
        stages = Stages(root, say)
        with hold_lock(root.with_name(f"{root.name}.lock")), _kept_if_interrupted(stages):
            _drop_partial(root)
            yield stages
    except OSError as cause:
        raise ExportError(
            "the export cannot go on",
            got=cause,
            expected=f"files that can be read, and space and permission to write in {out.parent}",
            fix="put that right and call the same command again: it goes on from here",
        ) from cause


@contextlib.contextmanager
def _kept_if_interrupted(stages: Stages) -> Iterator[None]:
    root = stages.root
    try:
        yield
    except VlaAlignError as error:  # an engine that refuses a graph, too, refuses it the next time
        if not (stages.keep or isinstance(error.__cause__, OSError)):
            shutil.rmtree(root, ignore_errors=True)
        raise
    else:
        shutil.rmtree(root, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            root.rmdir()  # where no step was done, there is nothing to go on from


def _drop_partial(root: Path) -> None:
    """Remove all that is no step's result, such as a bundle that was never moved to its place."""
    for path in root.glob("*"):
        if not path.is_dir():
            path.unlink()
        elif path.name.startswith(".") or not (path / _INDEX).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _write_index(folder: Path) -> None:
    files = _hash_files(folder)
    for name in files:
        sync_path(folder / name)
    write_durably(folder / _INDEX, readable_json(files))
    sync_folder(folder)


def _hash_files(folder: Path) -> dict[str, Any]:
    return {
        path.name: list(hash_file(path)) for path in sorted(folder.iterdir()) if path.name != _INDEX
    }
