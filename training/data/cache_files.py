"""What the files of a cache have in common: room on the disk, and errors that say what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_align_ros.errors import DataError


def check_room(what: str, path: Path, needed: int, fix: str) -> None:
    """DataError unless the disk has `needed` bytes left for the file that `path` will be."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"{what} {path.name} does not fit the disk",
            got=f"{free / 1e9:.2f} GB free in {path.parent}",
            expected=f"{needed / 1e9:.2f} GB",
            fix=fix,
        )


@contextmanager
def explain_errors(what: str, path: Path, fix: str) -> Iterator[None]:
    """Turn what the operating system refuses within the block into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{what} {path.name} cannot be written",
            got=str(error),
            expected=f"room and permission in {path.parent}",
            fix=fix,
        ) from error
