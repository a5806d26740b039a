"""Fetches single pictures from anywhere in a dataset, and keeps as many as memory allows."""

from __future__ import annotations

import bisect
import collections
import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from training.data.reader import LeRobotReader
from training.data.video import VideoReader
from vla_align_ros.contract.images import ImageTransform, decode_compressed
from vla_align_ros.errors import ContractError, DataError

_OPEN_FILES = 16  # a thread
_KEPT_GROUPS = 8


class OnlinePictures:
    """Pictures of one camera, decoded when they are asked for and resized to the model's input.

    Up to `capacity_bytes` of them stay in memory, first come first kept: with random draws no
    other rule hits more often, and none costs less. Any number of threads may ask.
    """

    def __init__(
        self,
        reader: LeRobotReader,
        camera: str,
        transform: ImageTransform,
        *,
        capacity_bytes: int = 0,
        broken: Mapping[int, str] | None = None,
    ) -> None:
        """`broken`: episodes whose pictures are given as black."""
        self.broken = dict(broken or {})
        self._reader, self._transform = reader, transform
        self._raw = RawPictures(reader, camera)
        size = transform.size
        self._room = capacity_bytes // (size * size * 3)
        self._kept: dict[int, np.ndarray] = {}

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Frames (n, S, S, 3) uint8 RGB of `rows` (n,) int64."""
        size = self._transform.size
        output = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        for place in np.argsort(rows, kind="stable"):  # neighbours are decoded together
            output[place] = self._fetch(int(rows[place]))
        return output

    def _fetch(self, row: int) -> np.ndarray:
        kept = self._kept.get(row)
        if kept is not None:
            return kept
        if self.broken and self._raw.episode_of(row) in self.broken:
            return np.zeros((self._transform.size, self._transform.size, 3), dtype=np.uint8)
        picture: np.ndarray = self._transform.resize(self._raw.picture(row))
        if len(self._kept) < self._room:  # two threads may overshoot by a picture each
            self._kept[row] = picture
        return picture


class RawPictures:
    """Pictures of one camera as recorded, from mp4 files or from the tables."""

    def __init__(self, reader: LeRobotReader, camera: str) -> None:
        """`camera` is a feature's whole name."""
        self._reader = reader
        self._starts = reader.episode_starts
        is_video = camera in reader.schema.video_keys
        self._clips = reader.clips(camera) if is_video else None
        self._table = None if is_video else TablePictures(reader, camera)
        self._local = threading.local()

    def episode_of(self, row: int) -> int:
        """Episode of a row."""
        return bisect.bisect_right(self._starts, row) - 1

    def picture(self, row: int) -> np.ndarray:
        """The picture (H, W, 3) uint8 RGB of a row; DataError names a damaged episode."""
        if self._clips is None:
            assert self._table is not None
            return self._table.picture(row)
        episode = self.episode_of(row)
        clip = self._clips[episode]
        try:
            return self._open(clip.path).frame(clip.first + row - int(self._starts[episode]))
        except DataError as error:
            self._forget(clip.path)
            raise DataError(
                f"Episode {episode} of {self._reader.root} cannot be decoded",
                got=f"{error.summary}: {error.got}",
                expected="every frame of every episode",
                fix="list all damage with `vla-align data check DIR`; --skip-broken then trains"
                " without those episodes",
            ) from error

    def _files(self) -> collections.OrderedDict[Path, VideoReader]:
        """This thread's open files, the least recently used first."""
        if not hasattr(self._local, "files"):
            self._local.files = collections.OrderedDict()
        files: collections.OrderedDict[Path, VideoReader] = self._local.files
        return files

    def _open(self, path: Path) -> VideoReader:
        files = self._files()
        if path not in files:
            files[path] = VideoReader(path, self._reader.rate_hz)
            if len(files) > _OPEN_FILES:
                files.popitem(last=False)[1].close()
        files.move_to_end(path)
        return files[path]

    def _forget(self, path: Path) -> None:
        opened = self._files().pop(path, None)
        if opened is not None:
            opened.close()


class TablePictures:
    """Pictures that lie as PNG or JPEG in the tables (features of dtype "image")."""

    def __init__(self, reader: LeRobotReader, camera: str) -> None:
        """`camera` is a feature's whole name."""
        self._reader, self._camera = reader, camera
        self._files = reader.version.data_files()
        self._group = functools.lru_cache(_KEPT_GROUPS)(self._read_group)
        self._starts = functools.lru_cache(None)(self._group_starts)

    def picture(self, row: int) -> np.ndarray:
        """The picture (H, W, 3) uint8 RGB of a row; DataError names a damaged episode."""
        file = bisect.bisect_right(self._reader.file_starts, row) - 1
        within = row - int(self._reader.file_starts[file])
        starts = self._starts(file)
        group = bisect.bisect_right(starts, within) - 1
        try:
            value = self._group(file, group)[within - starts[group]].as_py()
            image: np.ndarray = decode_compressed(_bytes_of(value, self._reader.root))
        except (ContractError, OSError) as error:
            episode = bisect.bisect_right(self._reader.episode_starts, row) - 1
            raise DataError(
                f"A picture in episode {episode} of {self._reader.root} cannot be decoded",
                got=str(error),
                expected="a PNG or JPEG",
                fix="download the data set again, or train without it: --skip-broken",
            ) from error
        return image

    def _group_starts(self, file: int) -> list[int]:
        metadata = pq.read_metadata(self._files[file])
        counts = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        return [int(n) for n in np.concatenate([[0], np.cumsum(counts)])]

    def _read_group(self, file: int, group: int) -> Any:
        with pq.ParquetFile(self._files[file]) as opened:
            table = opened.read_row_group(group, columns=[self._camera])
        return table[self._camera].combine_chunks()


def _bytes_of(value: Any, root: Path) -> bytes:
    """Content of a picture's cell: bytes, or a path below the data set."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path") if isinstance(value, dict) else None
    if not path or not (root / path).resolve().is_relative_to(root.resolve()):
        raise ContractError("the cell holds no picture", got=path, expected="bytes or a path")
    return (root / str(path)).read_bytes()
