"""Where LeRobot v2.0, v2.1 and v3.0 keep episodes, tasks, tables and videos.

v2 has a file for every episode and JSON lines for what describes them; v3 joins many episodes in a
file and describes them in parquet. Source: huggingface/lerobot, `src/lerobot/datasets`.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.layout import CODEBASE_VERSION, TASKS_PATH, VIDEO_PATH
from vla_align_ros.errors import DataError

V2_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass(frozen=True, slots=True)
class Clip:
    """One episode in a camera's video file: frames first..first + length - 1 of `path`."""

    episode: int
    path: Path
    first: int
    length: int


class Version(Protocol):
    """How one version of the format is laid out."""

    def tasks(self) -> list[str]:
        """Texts by task index."""

    def episodes(self) -> pa.Table:
        """A row an episode, in order: episode_index, tasks, length, and what else there is."""

    def data_files(self) -> list[Path]:
        """The tables, in the order of the rows."""

    def episode_files(self) -> list[Path]:
        """What describes the episodes, for the content's hash."""

    def clips(self, video_key: str, episodes: pa.Table) -> list[Clip]:
        """Where a camera's episodes are."""


def find_version(root: Path, info: Mapping[str, Any]) -> Version:
    """The layout that info.json declares; DataError for one that is not known."""
    version = str(info.get("codebase_version"))
    if version == CODEBASE_VERSION:
        return Version3(root, info)
    if version in ("v2.0", "v2.1"):
        return Version2(root, info)
    raise DataError(
        f"{root} has another dataset version",
        got=version,
        expected="v3.0, v2.1 or v2.0",
        fix="convert it with lerobot's converter, or collect it again",
    )


@dataclass(frozen=True, slots=True)
class Version3:
    """Chunks of files, each of many episodes."""

    root: Path
    info: Mapping[str, Any]

    def tasks(self) -> list[str]:
        """Texts by task index."""
        path = self.root / TASKS_PATH
        if not path.exists():
            return []
        table = open_table(path, pq.read_table)
        held = table.column_names
        name = "__index_level_0__" if "__index_level_0__" in held and "task" not in held else "task"
        check_columns(path, held, ("task_index", name))
        return _by_index(table["task_index"].to_pylist(), table[name].to_pylist())

    def episodes(self) -> pa.Table:
        """Rows of meta/episodes without the statistics, in order."""
        files = self.episode_files()
        if not files:
            return pa.table({"episode_index": pa.array([], type=pa.int64())})
        held = open_table(files[0], pq.read_schema).names
        names = [name for name in held if not name.startswith("stats/")]
        check_columns(files[0], names, ("episode_index", "length"))
        rows = pa.concat_tables([open_table(f, pq.read_table, columns=names) for f in files])
        return rows.sort_by("episode_index")

    def data_files(self) -> list[Path]:
        """The tables, in the order of the rows."""
        return sorted((self.root / "data").glob("chunk-*/file-*.parquet"))

    def episode_files(self) -> list[Path]:
        """The files of episode rows."""
        return sorted((self.root / "meta/episodes").glob("chunk-*/file-*.parquet"))

    def clips(self, video_key: str, episodes: pa.Table) -> list[Clip]:
        """Where a camera's episodes are, by the time stamps of their rows."""
        prefix = f"videos/{video_key}/"
        names = ["episode_index", "length"]
        names += [prefix + name for name in ("chunk_index", "file_index", "from_timestamp")]
        check_columns(self.root / "meta/episodes", episodes.column_names, names)
        template, rate = self.info.get("video_path") or VIDEO_PATH, float(self.info["fps"])
        return [
            Clip(
                episode,
                self.root
                / template.format(video_key=video_key, chunk_index=chunk, file_index=file),
                round(start_s * rate),
                length,
            )
            for episode, length, chunk, file, start_s in zip(
                *(episodes[name].to_pylist() for name in names), strict=True
            )
        ]


@dataclass(frozen=True, slots=True)
class Version2:
    """A table and a video for every episode."""

    root: Path
    info: Mapping[str, Any]

    def tasks(self) -> list[str]:
        """Texts by task index."""
        rows = _read_lines(self.root / "meta/tasks.jsonl", ("task_index", "task"))
        return _by_index([row["task_index"] for row in rows], [row["task"] for row in rows])

    def episodes(self) -> pa.Table:
        """Rows of meta/episodes.jsonl in order."""
        rows = _read_lines(self.root / "meta/episodes.jsonl", ("episode_index", "tasks", "length"))
        rows.sort(key=lambda row: row["episode_index"])
        return pa.table(
            {
                "episode_index": pa.array([r["episode_index"] for r in rows], type=pa.int64()),
                "tasks": pa.array(
                    [list(r["tasks"] or ()) for r in rows], type=pa.list_(pa.string())
                ),
                "length": pa.array([r["length"] for r in rows], type=pa.int64()),
            }
        )

    def data_files(self) -> list[Path]:
        """The tables, in the order of the episodes."""
        template = self.info.get("data_path") or V2_DATA_PATH
        return [self._path(template, episode) for episode in range(self.info["total_episodes"])]

    def episode_files(self) -> list[Path]:
        """The file that describes the episodes."""
        return [self.root / "meta/episodes.jsonl"]

    def clips(self, video_key: str, episodes: pa.Table) -> list[Clip]:
        """Where a camera's episodes are: a file each."""
        template = self.info.get("video_path") or V2_VIDEO_PATH
        columns = (episodes[name].to_pylist() for name in ("episode_index", "length"))
        return [
            Clip(episode, self._path(template, episode, video_key=video_key), 0, length)
            for episode, length in zip(*columns, strict=True)
        ]

    def _path(self, template: str, episode: int, **more: str) -> Path:
        chunk = episode // int(self.info.get("chunks_size", 1000))
        return self.root / template.format(episode_chunk=chunk, episode_index=episode, **more)


def open_table(path: Path, read: Any, **options: Any) -> Any:
    """What `read` gives of a parquet file; DataError, naming it, if it is missing or damaged."""
    try:
        return read(path, **options)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"Cannot read the table {path}",
            got=str(error),
            expected="a whole parquet file",
            fix="download or collect the data set again",
        ) from error


def check_columns(
    path: Path, names: Container[str], needed: Sequence[str], what: str = "columns"
) -> None:
    """DataError, naming the file, if its columns (or `what` it is of) `names` lack one."""
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path} lacks {what}",
            got=f"no {', '.join(missing)}",
            expected=", ".join(needed),
            fix="download or convert the data set again",
        )


def _by_index(indices: Sequence[int], texts: Sequence[str | None]) -> list[str]:
    """Texts in the order of their indices; an index that no text has gets an empty one."""
    found = dict(zip(indices, texts, strict=True))
    return [found.get(index) or "" for index in range(max(found, default=-1) + 1)]


def _read_lines(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        missing = {key for row in rows for key in keys if key not in row}
        if missing:
            raise ValueError(f"rows without {sorted(missing)}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"Cannot read {path}",
            got=str(error),
            expected=f"JSON lines with {', '.join(keys)}",
            fix="download or convert the data set again",
        ) from error
    return rows
