"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vla_align_ros.errors import DataError, VlaAlignError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success fsync it and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # safetensors writes for its owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def told_as_oserror(path: Path) -> Iterator[None]:
    """Raise the OSError that an error of safetensors stands for, as of a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_json_if_there(path: Path) -> Any:
    """What a JSON file holds; None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Let one process at a time into the block; the others wait, and say so.

    The kernel drops the lock with its holder, however that ends. The file goes with the block, so
    what the block makes must be looked for in it. DataError on a file system without locks.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            _wait_for_lock(file, path)
            if not _lies_at(file, path):
                continue  # its holder removed it meanwhile: whoever comes next locks another one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def hold_alone(path: Path, refusal: VlaAlignError) -> Iterator[BinaryIO]:
    """Let one process into the block and refuse others: `refusal` is raised at once.

    Yields the open file: a process that inherits it holds the lock as well. The file stays. Without
    locks on the file system nobody is refused, which is said.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise refusal from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{path}: no lock, so start nothing twice there ({error})", file=sys.stderr)
        yield file


def _wait_for_lock(file: BinaryIO, path: Path) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that holds {path}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise DataError(
            f"The file system of {path.parent} has no locks",
            got=str(error),
            expected="a local disk, or a network file system with flock",
            fix="give a folder on a local disk; for a cache by --cache DIR",
        ) from error


def _lies_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
