"""Writes LeRobot v3.0 datasets shard by shard, so that a killed run loses its tail and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.layout import (
    CODEBASE_VERSION,
    DATA_PATH,
    FILES_PER_CHUNK,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    DatasetSchema,
    EpisodeRecord,
    column_array,
    column_values,
    data_path,
    episodes_path,
    file_indices,
    tasks_table,
    video_path,
)
from training.data.reader import read_json
from training.data.stats import (
    Stats,
    column_stats,
    flatten_stats,
    image_stats,
    json_stats,
    merge_image_stats,
)
from training.data.video import encode_video
from training.files import replace_atomically
from vla_align_ros.errors import DataError


class LeRobotWriter:
    """Appends episodes; every `episodes_per_file` of them become one finished set of files.

    A shard is committed by its file of episode rows, which is renamed into place last. Opening an
    existing dataset keeps the committed shards, deletes what came after them and goes on.
    """

    def __init__(
        self, root: str | Path, schema: DatasetSchema, *, episodes_per_file: int = 50
    ) -> None:
        """Create `root`, or reopen it; raise DataError if it holds another schema."""
        self.root = Path(root)
        self.schema = schema
        self._episodes_per_file = episodes_per_file
        self._pending: list[EpisodeRecord] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._image_stats: dict[str, list[Stats]] = {key: [] for key in schema.video_keys}
        self._tasks: dict[str, int] = {}
        self._files = self._episodes = self._frames = 0
        if (self.root / INFO_PATH).exists():
            self._reopen()
        self._write_meta()

    @property
    def num_episodes(self) -> int:
        """Episodes so far, those waiting for their shard included."""
        return self._episodes + len(self._pending)

    @property
    def num_frames(self) -> int:
        """Frames so far, those waiting for their shard included."""
        return self._frames + sum(len(record) for record in self._pending)

    def append(self, record: EpisodeRecord) -> None:
        """Add one episode; writes a shard when enough have gathered."""
        record.check(self.schema)
        self._pending.append(record)
        if len(self._pending) >= self._episodes_per_file:
            self.flush()

    def flush(self) -> None:
        """Commit the waiting episodes as a shard (shorter than the others when at the end)."""
        if not self._pending:
            return
        records, self._pending = self._pending, []
        for record in records:
            self._tasks.setdefault(record.task, len(self._tasks))
        for key in self.schema.video_keys:
            with replace_atomically(video_path(self.root, key, self._files)) as temporary:
                images = (image for record in records for image in record.images[key])
                encode_video(
                    temporary, images, self.schema.fps, pixel_format=self.schema.pixel_format
                )
        columns = self._shard_columns(records)
        with replace_atomically(data_path(self.root, self._files)) as temporary:
            self._write_data(temporary, columns, [len(record) for record in records])
        rows = self._episode_rows(records, columns)
        with replace_atomically(self.root / TASKS_PATH) as temporary:
            pq.write_table(tasks_table(list(self._tasks)), temporary)
        with replace_atomically(episodes_path(self.root, self._files)) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        self._remember(columns, len(records))
        self._write_meta()

    def _shard_columns(self, records: list[EpisodeRecord]) -> dict[str, np.ndarray]:
        lengths = [len(record) for record in records]
        total = sum(lengths)
        within = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
        columns = {
            key: np.concatenate([record.columns[key] for record in records])
            for key in self.schema.table_keys
        }
        columns["timestamp"] = (within / self.schema.fps).astype(np.float32)
        columns["frame_index"] = within
        numbers = np.arange(self._episodes, self._episodes + len(records), dtype=np.int64)
        columns["episode_index"] = np.repeat(numbers, lengths)
        columns["index"] = np.arange(self._frames, self._frames + total, dtype=np.int64)
        task_ids = np.array([self._tasks[record.task] for record in records], dtype=np.int64)
        columns["task_index"] = np.repeat(task_ids, lengths)
        return columns

    def _write_data(self, path: Path, columns: dict[str, np.ndarray], lengths: list[int]) -> None:
        table = pa.table({name: column_array(values) for name, values in columns.items()})
        with pq.ParquetWriter(path, table.schema) as writer:  # one episode a row group
            start = 0
            for length in lengths:
                writer.write_table(table.slice(start, length))
                start += length

    def _episode_rows(
        self, records: list[EpisodeRecord], columns: dict[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        rows = []
        start = 0
        place = file_indices(self._files)
        for number, record in enumerate(records):
            stop = start + len(record)
            stats = {key: image_stats(record.images[key]) for key in self.schema.video_keys}
            for key, values in stats.items():
                self._image_stats[key].append(values)
            stats.update({key: column_stats(values[start:stop]) for key, values in columns.items()})
            row: dict[str, Any] = {
                "episode_index": self._episodes + number,
                "tasks": [record.task],
                "length": len(record),
                "dataset_from_index": self._frames + start,
                "dataset_to_index": self._frames + stop,
                **{f"data/{name}": value for name, value in place.items()},
                **{f"meta/episodes/{name}": value for name, value in place.items()},
            }
            for key in self.schema.video_keys:
                row.update({f"videos/{key}/{name}": value for name, value in place.items()})
                row[f"videos/{key}/from_timestamp"] = start / self.schema.fps
                row[f"videos/{key}/to_timestamp"] = stop / self.schema.fps
            rows.append({**row, **record.notes, **flatten_stats(stats)})
            start = stop
        return rows

    def _remember(self, columns: dict[str, np.ndarray], episodes: int) -> None:
        for key, values in columns.items():
            self._columns.setdefault(key, []).append(values)
        self._files += 1
        self._episodes += episodes
        self._frames += len(columns["index"])

    def _write_meta(self) -> None:
        if self._files:
            stats = {k: merge_image_stats(parts) for k, parts in self._image_stats.items()}
            for key, parts in self._columns.items():
                stats[key] = column_stats(np.concatenate(parts))
            self._write_json(STATS_PATH, json_stats(stats))
        info = {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self.schema.robot_type,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.schema.fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self.schema.feature_dict(),
        }
        self._write_json(INFO_PATH, info)

    def _write_json(self, name: str, content: Any) -> None:
        with replace_atomically(self.root / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _reopen(self) -> None:
        """Take over the committed shards and delete the files of an unfinished one."""
        info = read_json(self.root / INFO_PATH)
        found = DatasetSchema.from_info(info)
        self.schema = replace(self.schema, pixel_format=found.pixel_format)
        if found != self.schema:
            raise DataError(
                f"{self.root} holds another kind of dataset",
                got=f"{info.get('fps')} Hz, {sorted(info.get('features', {}))}",
                expected=f"{self.schema.fps} Hz, {sorted(self.schema.feature_dict())}",
                fix="choose another --out, or delete the folder",
            )
        while episodes_path(self.root, self._files).exists():
            self._take_over_shard(pq.read_table(episodes_path(self.root, self._files)))
        self._delete_after(self._files)

    def _take_over_shard(self, rows: pa.Table) -> None:
        for tasks in rows["tasks"].to_pylist():
            self._tasks.setdefault(tasks[0], len(self._tasks))
        for key in self.schema.video_keys:
            prefix = f"stats/{key}/"
            names = [n for n in rows.column_names if n.startswith(prefix)]
            for row in rows.select(names).to_pylist():
                stats = {n[len(prefix) :]: np.asarray(row[n]) for n in names}
                self._image_stats[key].append(stats)
        table = pq.read_table(data_path(self.root, self._files))
        shapes = {key: feature.shape for key, feature in self.schema.features.items()}
        columns = {n: column_values(table[n], shapes.get(n, ())) for n in table.column_names}
        self._remember(columns, rows.num_rows)

    def _delete_after(self, file_number: int) -> None:
        kept = {data_path(self.root, n) for n in range(file_number)}
        kept |= {episodes_path(self.root, n) for n in range(file_number)}
        for key in self.schema.video_keys:
            kept |= {video_path(self.root, key, n) for n in range(file_number)}
        for folder in ("data", "meta/episodes", "videos"):
            for path in (self.root / folder).rglob("*"):
                if path.is_file() and path not in kept:
                    path.unlink()
