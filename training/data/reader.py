"""Reads a LeRobot v3.0 dataset from disk with numpy, pyarrow and PyAV alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.layout import (
    CODEBASE_VERSION,
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    DatasetSchema,
    column_values,
)
from training.data.video import decode_video
from vla_align_ros.errors import DataError


def read_json(path: Path) -> Any:
    """Parse a JSON file, or raise one DataError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Cannot read {path}",
            got=str(error),
            expected="a LeRobot v3.0 dataset",
            fix="give the folder that `vla-align collect --out` wrote",
        ) from error


class LeRobotReader:
    """A dataset folder, opened for reading.

    Attributes: `root`, `info` (info.json), `schema`, `tasks` (text by task index),
    `episodes` (pyarrow table without the statistics columns).
    """

    def __init__(self, root: str | Path) -> None:
        """Open `root`; raise DataError for another layout, another version or damaged counts."""
        self.root = Path(root)
        self.info: dict[str, Any] = read_json(self.root / INFO_PATH)
        version = self.info.get("codebase_version")
        if version != CODEBASE_VERSION:
            raise DataError(
                f"{self.root} has another dataset version",
                got=str(version),
                expected=CODEBASE_VERSION,
                fix="convert it with lerobot's converter, or collect it again",
            )
        self.schema = DatasetSchema.from_info(self.info)
        self.tasks = self._read_tasks()
        self.episodes = self._read_episodes()
        rows = self.episodes.num_rows
        if rows != int(self.info["total_episodes"]):
            raise DataError(
                f"{self.root} was not closed cleanly",
                got=f"{rows} episode rows",
                expected=f"{self.info['total_episodes']} as meta/info.json says",
                fix="run the same `vla-align collect` command again: it repairs and continues",
            )

    def __len__(self) -> int:
        return int(self.info["total_frames"])

    @property
    def stats(self) -> dict[str, Any]:
        """meta/stats.json as nested lists (empty while the dataset has no episode)."""
        path = self.root / STATS_PATH
        return dict(read_json(path)) if path.exists() else {}

    def _files(self, kind: str, suffix: str) -> list[Path]:
        return sorted((self.root / kind).glob(f"chunk-*/file-*.{suffix}"))

    def _read_tasks(self) -> list[str]:
        path = self.root / TASKS_PATH
        if not path.exists():
            return []
        table = pq.read_table(path)
        order = np.argsort(table["task_index"].to_numpy())
        texts = table["task" if "task" in table.column_names else "__index_level_0__"].to_pylist()
        return [texts[k] for k in order]

    def _read_episodes(self) -> pa.Table:
        files = self._files("meta/episodes", "parquet")
        if not files:
            return pa.table({"episode_index": pa.array([], type=pa.int64())})
        names = [n for n in pq.read_schema(files[0]).names if not n.startswith("stats/")]
        return pa.concat_tables([pq.read_table(f, columns=names) for f in files])

    def columns(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Tabular columns of the whole dataset: name -> (N, *shape), rows in `index` order."""
        wanted = list(names or (*self.schema.table_keys, *INDEX_FEATURES))
        shapes = {key: feature.shape for key, feature in self.schema.features.items()}
        missing = [n for n in wanted if n not in shapes and n not in INDEX_FEATURES]
        if missing:
            raise DataError(
                f"{self.root} lacks columns",
                got=f"{missing}",
                expected=f"any of {sorted([*self.schema.table_keys, *INDEX_FEATURES])}",
                fix="collect the dataset with this version of `vla-align collect`",
            )
        tables = [pq.read_table(f, columns=wanted) for f in self._files("data", "parquet")]
        if not tables:
            return {}
        table = pa.concat_tables(tables)
        return {name: column_values(table[name], shapes.get(name, ())) for name in wanted}

    def video_files(self, video_key: str) -> list[tuple[Path, int]]:
        """(path, number of frames) of a camera's mp4 files, in the order of the rows."""
        rows = self.episodes.select(
            [f"videos/{video_key}/chunk_index", f"videos/{video_key}/file_index", "length"]
        )
        lengths: dict[tuple[int, int], int] = {}
        for chunk, file, length in zip(*(c.to_pylist() for c in rows.columns), strict=True):
            lengths[chunk, file] = lengths.get((chunk, file), 0) + length
        template = self.info["video_path"]
        return [
            (
                self.root
                / template.format(video_key=video_key, chunk_index=chunk, file_index=file),
                count,
            )
            for (chunk, file), count in lengths.items()
        ]

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

    def pictures(self, video_key: str, rows: np.ndarray) -> np.ndarray:
        """The frames of `rows` (n,) int64 as the camera gave them: (n, H, W, 3) uint8 RGB.

        Decodes whole files: for a few rows, not for training.
        """
        height, width, _ = self.schema.features[video_key].shape
        output = np.empty((len(rows), height, width, 3), dtype=np.uint8)
        start = 0
        for path, count in self.video_files(video_key):
            wanted = {
                int(rows[k]) - start: k
                for k in np.flatnonzero((rows >= start) & (rows < start + count))
            }
            if wanted:
                for number, image in enumerate(decode_video(path)):
                    if number in wanted:
                        output[wanted[number]] = image
            start += count
        return output

    def content_hash(self) -> str:
        """sha256 over tables and video sizes: names a cache of this dataset's content."""
        digest = hashlib.sha256()
        for file in (*self._files("meta/episodes", "parquet"), *self._files("data", "parquet")):
            digest.update(f"{file.relative_to(self.root)}:".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        for key in self.schema.video_keys:
            for path, frames in self.video_files(key):
                digest.update(f"{path.name}:{path.stat().st_size}:{frames}".encode())
        return digest.hexdigest()
