"""Reads a LeRobot dataset (v2.0, v2.1, v3.0) from disk with numpy, pyarrow and PyAV alone."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.layout import (
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    DatasetSchema,
    column_values,
)
from training.data.versions import Clip, check_columns, find_version, open_table
from training.data.video import decode_numbered, decode_video
from vla_align_ros.errors import DataError

_HASHED_WHOLE = 64 << 20  # bytes; of a larger table (pictures inside), both ends and the size
_HASHED_END = 1 << 20
_NEEDED = ("fps", "features", "total_episodes", "total_frames")  # of info.json


def read_json(path: Path) -> Any:
    """Parse a JSON file, or raise one DataError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Cannot read {path}",
            got=str(error),
            expected="a LeRobot dataset",
            fix="give a dataset's folder, such as `vla-align collect --out` writes",
        ) from error


def read_info(root: Path) -> dict[str, Any]:
    """A data set's meta/info.json; DataError if it is missing or incomplete."""
    info = read_json(root / INFO_PATH)
    held = info if isinstance(info, dict) else {}
    check_columns(root / INFO_PATH, held, _NEEDED, "entries")
    return held


class LeRobotReader:
    """A dataset folder, opened for reading.

    Attributes: `root`, `name` (what people call it), `info` (info.json), `schema`, `version` (how
    the files lie), `rate_hz`, `tasks` (text by task index), `episodes` (pyarrow table without the
    statistics columns).
    """

    def __init__(self, root: str | Path, *, name: str | None = None) -> None:
        """Open `root`; raise DataError for another layout, another version or damaged counts.

        name: where the folder's own says nothing, as in the hub's cache, where it is a commit.
        """
        self.root = Path(root)
        self.name = self.root.name if name is None else name
        self.info = read_info(self.root)
        self.version = find_version(self.root, self.info)
        self.schema = DatasetSchema.from_info(self.info)
        self.rate_hz = float(self.info["fps"])
        self.tasks = self.version.tasks()
        self._hashes: dict[str | None, str] = {}  # each video of a large data set is looked at
        self.episodes = self.version.episodes()
        rows = self.episodes.num_rows
        if rows != int(self.info["total_episodes"]):
            raise DataError(
                f"{self.root} was not closed cleanly",
                got=f"{rows} episode rows",
                expected=f"{self.info['total_episodes']} as meta/info.json says",
                fix="run the same `vla-align collect` command again, which repairs and continues,"
                " or download the data set again",
            )
        numbers = self.episodes["episode_index"].to_numpy()
        if not np.array_equal(numbers, np.arange(rows)):
            place = int(np.argmin(numbers == np.arange(rows)))
            raise DataError(
                f"The episodes of {self.root} are not numbered one after the other",
                got=f"episode {numbers[place]} in place {place}",
                expected=f"0 to {rows - 1}, each once",
                fix="number them anew, in the tables too, as lerobot does when it deletes episodes",
            )

    def __len__(self) -> int:
        return int(self.info["total_frames"])

    @property
    def stats(self) -> dict[str, Any]:
        """meta/stats.json as nested lists (empty where there is none)."""
        path = self.root / STATS_PATH
        return dict(read_json(path)) if path.exists() else {}

    @functools.cached_property
    def episode_starts(self) -> np.ndarray:
        """First row of every episode, and the number of rows: (episodes + 1,) int64."""
        lengths = self.episodes["length"].to_numpy() if self.episodes.num_rows else []
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @functools.cached_property
    def file_starts(self) -> np.ndarray:
        """First row of every table in `version.data_files()`, and the number of rows."""
        files = self.version.data_files()
        counts = [open_table(path, pq.read_metadata).num_rows for path in files]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def columns(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Tabular columns of the whole dataset: name -> (N, *shape), rows in `index` order.

        DataError if they cannot be read, or their episodes or frames are out of order.
        """
        wanted = list(names or (*self.schema.table_keys, *INDEX_FEATURES))
        shapes = {key: feature.shape for key, feature in self.schema.features.items()}
        known = {*self.schema.table_keys, *INDEX_FEATURES}
        missing = [n for n in wanted if n not in known]
        if missing:
            raise DataError(
                f"{self.root} lacks columns",
                got=f"no {missing}",
                expected=f"any of {sorted(known)}",
                fix="name one of these, for example by --set data.state_key=...",
            )
        files = self.version.data_files()
        if not files:
            return {}
        parts = [open_table(f, pq.read_table, columns=wanted) for f in files]
        table = pa.concat_tables(parts, promote_options="permissive")
        if table.num_rows != len(self) or table.num_rows != self.episode_starts[-1]:
            raise DataError(
                f"The tables of {self.root} disagree",
                got=f"{table.num_rows} rows, {self.episode_starts[-1]} in the episodes' lengths",
                expected=f"{len(self)} as meta/info.json says",
                fix="download or collect the data set again",
            )
        columns = {
            name: column_values(table[name], shapes.get(name, ()), f"{name} of {self.root}")
            for name in wanted
        }
        self._check_order(columns)
        return columns

    def _check_order(self, columns: dict[str, np.ndarray]) -> None:
        """Refuse rows out of order: pictures and the actions that follow are found by place."""
        lengths = np.diff(self.episode_starts)
        episode = np.repeat(np.arange(len(lengths)), lengths)
        frame = np.arange(len(episode)) - self.episode_starts[episode]
        for name, expected in (("episode_index", episode), ("frame_index", frame)):
            found = columns.get(name, expected)
            if not np.array_equal(found, expected):
                row = int(np.argmin(found == expected))
                raise DataError(
                    f"The rows of {self.root} are out of order",
                    got=f"{name} {found[row]} in row {row}",
                    expected=f"{name} {expected[row]}: one episode after the other, each from"
                    " frame 0 on without a gap",
                    fix="sort the tables by index and number frames anew, or convert the data set"
                    " again",
                )

    def clips(self, video_key: str) -> list[Clip]:
        """Where a camera's episodes are in its mp4 files, in the order of the episodes."""
        return self.version.clips(video_key, self.episodes)

    def video_files(self, video_key: str) -> list[tuple[Path, int]]:
        """(path, number of frames) of a camera's mp4 files, in the order of the rows."""
        lengths: dict[Path, int] = {}
        for clip in self.clips(video_key):
            lengths[clip.path] = lengths.get(clip.path, 0) + clip.length
        return list(lengths.items())

    def frames(self, video_key: str) -> Iterator[np.ndarray]:
        """Every frame of a camera as (H, W, 3) uint8 RGB, in the order of the rows."""
        for path, expected in self.video_files(video_key):
            count = 0
            for image in decode_video(path):
                count += 1
                yield image
            if count != expected:
                raise DataError(
                    f"The video {path} does not match its table",
                    got=f"{count} frames",
                    expected=f"{expected} frames",
                    fix="delete the dataset and collect it again",
                )

    def episode_frames(self, video_key: str, episode: int) -> Iterator[np.ndarray]:
        """The frames of one episode as (H, W, 3) uint8 RGB; DataError if one is missing."""
        clip = self.clips(video_key)[episode]
        count = 0
        for number, image in decode_numbered(clip.path, self.rate_hz):
            if clip.first <= number < clip.first + clip.length:
                count += 1
                yield image
        if count != clip.length:
            raise DataError(
                f"Episode {episode} of {self.root} lacks pictures",
                got=f"{count} frames of {clip.path}",
                expected=f"{clip.length} from frame {clip.first} on",
                fix="download the data set again, or train with --set data.skip_broken=true",
            )

    def content_hash(self, camera: str | None = None) -> str:
        """sha256 over tables and video sizes: names a cache of pictures, which no word changes.

        With a camera over its videos alone: others may be downloaded or not. As at the first call.
        """
        if camera not in self._hashes:
            self._hashes[camera] = self._hash(camera)
        return self._hashes[camera]

    def tables_hash(self) -> str:
        """sha256 over the tables alone: all but the pictures of videos."""
        return hashlib.sha256(self._tables).hexdigest()

    def meaning_hash(self) -> str:
        """sha256 over what the numbers mean: the tasks' texts, the columns' names, the rate."""
        names = {key: feature.names for key, feature in self.schema.features.items()}
        meaning = json.dumps([self.tasks, names, self.rate_hz], sort_keys=True)
        return hashlib.sha256(meaning.encode()).hexdigest()

    def _hash(self, camera: str | None) -> str:
        digest = hashlib.sha256(self._tables)
        for key in self.schema.video_keys:
            if camera not in (None, key):
                continue
            for path, frames in self.video_files(key):
                size = path.stat().st_size if path.exists() else -1
                digest.update(f"{path.name}:{size}:{frames}".encode())
        return digest.hexdigest()

    @functools.cached_property
    def _tables(self) -> bytes:
        """Names and hashes of all tables."""
        files = (*self.version.episode_files(), *self.version.data_files())
        return b"".join(
            f"{f.relative_to(self.root)}:".encode() + open_table(f, _hash_file) for f in files
        )


def _hash_file(path: Path) -> bytes:
    size = path.stat().st_size
    if size <= _HASHED_WHOLE:
        return hashlib.sha256(path.read_bytes()).digest()
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_END))
        file.seek(-_HASHED_END, 2)  # the footer: offsets and statistics of every column
        digest.update(file.read())
    return digest.digest()
