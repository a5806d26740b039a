"""A file of features that is filled block by block: resumable after any kill, safe for two writers.

While it is filled, `.NAME.partial` holds whole blocks and `.NAME.journal` one line a block with the
block's checksum, written after the block has reached the disk. The next process keeps every block
whose checksum fits and goes on behind it; the finished file gets its name by a rename.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.cache_files import check_room, explain_errors
from training.files import hold_lock, sync_folder
from vla_align_ros.errors import DataError

Features = NDArray[np.float16]
Compute = Callable[[int, int], Features]
JOURNAL_VERSION = 1
_DTYPE = np.dtype(np.float16)
_SPARE_BYTES = 1 << 20
_WHAT = "The feature cache"
_ELSEWHERE = "pass --cache DIR on another disk, or --set data.cache=false"
_FREE_IT = "free the disk and start again: finished blocks are kept; or pass --cache DIR"


def fill_feature_file(
    path: Path, rows: int, compute: Compute, *, block: int = 64, progress: bool = False
) -> int:
    """Make `path`, an .npy of (rows, ...) float16, unless it is there; return the rows computed.

    `compute(start, stop)` gives the features of those rows, finite float16 (stop - start, ...). A
    file begun by a killed process is continued with that process's block size. Processes that fill
    the same file wait for each other. DataError on a full disk or on features of a wrong form.
    """
    if path.exists():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with hold_lock(lock):  # whoever waited for it finds the finished file
        return 0 if path.exists() else _Filling(path, rows, block).run(compute, progress)


def open_feature_file(path: Path, rows: int) -> Features:
    """Memory-map a finished file read-only; DataError if it is damaged."""
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        if features.dtype == _DTYPE and features.ndim >= 2 and len(features) == rows:
            mapped: Features = features
            return mapped
        got = f"{features.dtype} {features.shape}"
    except (ValueError, EOFError, OSError) as error:
        got = str(error).splitlines()[0]
    raise DataError(
        f"The feature cache {path} is damaged",
        got=got,
        expected=f"float16, {rows} rows",
        fix="delete the file; it is made again",
    )


class _Filling:
    """One attempt to fill a file, holding its lock."""

    def __init__(self, path: Path, rows: int, block: int) -> None:
        self.path, self.rows, self.block = path, rows, block
        self.partial = path.with_name(f".{path.name}.partial")
        self.journal = path.with_name(f".{path.name}.journal")
        self.shape: tuple[int, ...] | None = None  # of one row
        self.offset = 0  # where the rows begin in the file

    def run(self, compute: Compute, progress: bool) -> int:
        """Fill what is missing and give the file its name."""
        done = self._resume()
        first = done
        self.partial.touch()
        self.journal.touch()
        bar = tqdm(
            total=self.rows, initial=done, unit="frame", desc="features", disable=not progress
        )
        # Without buffers: what does not fit the disk fails here, and not once more on closing.
        with bar, io.FileIO(self.partial, "r+") as data, io.FileIO(self.journal, "r+") as journal:
            journal.seek(0, os.SEEK_END)
            while done < self.rows:
                stop = min(done + self.block, self.rows)
                part = self._check(compute(done, stop), stop - done)
                with explain_errors(_WHAT, self.path, _FREE_IT):
                    if self.shape is None:
                        self._begin(part.shape[1:], data, journal)
                    self._append(done, part.tobytes(), data, journal)
                bar.update(stop - done)
                done = stop
        self.partial.replace(self.path)
        sync_folder(self.path.parent)
        self.journal.unlink(missing_ok=True)
        return self.rows - first

    def _begin(self, shape: tuple[int, ...], data: io.FileIO, journal: io.FileIO) -> None:
        """Write both headers, once the form of a row is known and the disk has room for all."""
        self._set_shape(shape)
        needed = self.rows * self._row_bytes() + _SPARE_BYTES
        check_room(_WHAT, self.path, needed, _ELSEWHERE)
        _write(data, self._array_header())
        line = {
            "version": JOURNAL_VERSION,
            "rows": self.rows,
            "block": self.block,
            "shape": list(shape),
        }
        _write(journal, (json.dumps(line) + "\n").encode())

    def _append(self, start: int, block: bytes, data: io.FileIO, journal: io.FileIO) -> None:
        """Bring one block to the disk, then its line in the journal."""
        data.seek(self.offset + start * self._row_bytes())
        _write(data, block)
        os.fsync(data.fileno())
        _write(journal, f"{start} {zlib.crc32(block):08x}\n".encode())
        os.fsync(journal.fileno())

    def _resume(self) -> int:
        """Rows that an earlier process has left whole; takes over its block size."""
        lines = self.journal.read_bytes().split(b"\n") if self.journal.exists() else []
        header = _parse_header(lines[0]) if lines and self.partial.exists() else None
        if header is None or header["rows"] != self.rows:
            self.partial.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)
            return 0
        self.block = int(header["block"])
        self._set_shape(tuple(header["shape"]))
        done, kept = 0, len(lines[0]) + 1
        with self.partial.open("rb") as data:
            data.seek(self.offset)
            for line in lines[1:-1]:
                stop = min(done + self.block, self.rows)
                block = data.read((stop - done) * self._row_bytes())
                if line != f"{done} {zlib.crc32(block):08x}".encode():
                    break
                done, kept = stop, kept + len(line) + 1
        os.truncate(self.journal, kept)
        os.truncate(self.partial, self.offset + done * self._row_bytes())
        return done

    def _check(self, part: Features, count: int) -> Features:
        shape = part.shape[1:] if self.shape is None else self.shape
        if part.dtype != _DTYPE or part.ndim < 2 or part.shape != (count, *shape):
            raise DataError(
                "Features have the wrong form",
                got=f"{part.dtype} {part.shape}",
                expected=f"float16 {(count, *shape)}",
                fix="use a network that gives the same number of features for every picture",
            )
        return np.ascontiguousarray(part)

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.offset = len(self._array_header())

    def _array_header(self) -> bytes:
        """What an .npy file of all rows begins with."""
        assert self.shape is not None
        values = {
            "shape": (self.rows, *self.shape),
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(_DTYPE),
        }
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, values)
        return header.getvalue()

    def _row_bytes(self) -> int:
        assert self.shape is not None
        return int(np.prod(self.shape, dtype=np.int64)) * _DTYPE.itemsize


def _parse_header(line: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(header, dict) and {"version", "rows", "block", "shape"} <= set(header)
    return header if whole and header["version"] == JOURNAL_VERSION else None


def _write(file: io.FileIO, data: bytes) -> None:
    """Write all of `data`; one call of the system may take less."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
