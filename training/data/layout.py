"""The facts of the LeRobot on-disk format: paths, feature dictionary, parquet schema.

Source: `LeRobotDataset v3.0` in the documentation of huggingface/lerobot (src/lerobot/datasets).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from training.data.video import PIXEL_FORMAT
from vla_align_ros.errors import DataError

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
COLLECTION_PATH = "meta/collection.json"
FILE_PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = "data/" + FILE_PATTERN + ".parquet"
EPISODES_PATH = "meta/episodes/" + FILE_PATTERN + ".parquet"
VIDEO_PATH = "videos/{video_key}/" + FILE_PATTERN + ".mp4"

INDEX_FEATURES: dict[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_NO_NUMBERS = ("video", "image", "string", "audio")
_NESTED = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_ARROW_TYPES = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64()}


@dataclass(frozen=True)
class Feature:
    """One column: `dtype` as LeRobot names it ("float32", "video", ...), `shape` without time."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    def to_dict(self, fps: int, pixel_format: str = PIXEL_FORMAT) -> dict[str, Any]:
        """The entry of `features` in info.json; videos also carry the facts of their stream."""
        entry: dict[str, Any] = {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "names": None if self.names is None else list(self.names),
        }
        if self.dtype == "video":
            height, width, channels = self.shape
            entry["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": pixel_format,
                "video.fps": fps,
                "video.channels": channels,
                "is_depth_map": False,
                "has_audio": False,
            }
        return entry

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in px of a camera's feature; recorders differ in the channels' place."""
        height, width = self.shape[1:] if self.shape[0] in (1, 3) else self.shape[:2]
        return height, width


@dataclass(frozen=True)
class DatasetSchema:
    """What every frame of a dataset holds, and at which rate (Hz)."""

    fps: int
    features: Mapping[str, Feature]
    robot_type: str | None = None
    pixel_format: str = PIXEL_FORMAT

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Names of the features that are kept as mp4."""
        return tuple(key for key, f in self.features.items() if f.dtype == "video")

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the features that are pictures, as mp4 or inside the tables."""
        return tuple(key for key, f in self.features.items() if f.dtype in ("video", "image"))

    @property
    def table_keys(self) -> tuple[str, ...]:
        """Names of the features that are numbers in parquet columns, but the index columns."""
        return tuple(key for key, f in self.features.items() if f.dtype not in _NO_NUMBERS)

    def feature_dict(self) -> dict[str, Any]:
        """`features` of info.json, index columns included."""
        entries = {
            key: feature.to_dict(self.fps, self.pixel_format)
            for key, feature in self.features.items()
        }
        for key, dtype in INDEX_FEATURES.items():
            entries[key] = Feature(dtype, (1,)).to_dict(self.fps)
        return entries

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> DatasetSchema:
        """Read the schema back from info.json; DataError if it is written otherwise."""
        try:
            features = {
                key: Feature(
                    entry["dtype"],
                    tuple(int(n) for n in entry["shape"]),
                    read_names(entry.get("names")),
                )
                for key, entry in info["features"].items()
                if key not in INDEX_FEATURES
            }
            formats = {
                (entry.get("info") or {}).get("video.pix_fmt", PIXEL_FORMAT)
                for entry in info["features"].values()
                if entry["dtype"] == "video"
            }
            rate = round(info["fps"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{INFO_PATH} cannot be read",
                got=f"{type(error).__name__}: {error}",
                expected="a number fps, and features with dtype and shape",
                fix="download or convert the data set again",
            ) from error
        pixel_format = formats.pop() if len(formats) == 1 else PIXEL_FORMAT
        return cls(rate, features, info.get("robot_type"), pixel_format)


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode of T frames.

    `images`: video key -> (T, H, W, 3) uint8 RGB; `columns`: feature -> (T, *shape);
    `notes`: scalars kept in the episode's row of meta/episodes (seed, kind of start, ...).
    """

    task: str
    images: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    notes: Mapping[str, int | float | str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def check(self, schema: DatasetSchema) -> None:
        """Raise DataError unless the episode has exactly the schema's features and shapes."""
        given = {**self.images, **self.columns}
        if set(given) != set(schema.features) or not len(self):
            raise DataError(
                "The episode does not fit the dataset",
                got=f"{len(self)} frames of {sorted(given)}",
                expected=f"at least one frame of {sorted(schema.features)}",
                fix="record every feature of the schema in every frame",
            )
        for key, feature in schema.features.items():
            dtype = np.dtype(np.uint8 if feature.dtype == "video" else feature.dtype)
            expected = (len(self), *feature.shape)
            if given[key].shape != expected or given[key].dtype != dtype:
                raise DataError(
                    f"Feature {key!r} does not fit the dataset",
                    got=f"{given[key].dtype} {given[key].shape}",
                    expected=f"{dtype} {expected}",
                    fix="record it with the shape and dtype that meta/info.json declares",
                )


def read_names(names: Any) -> tuple[str, ...] | None:
    """Names of a feature's values: a list, or lists under headings such as {"motors": [...]}."""
    if isinstance(names, Mapping):
        names = [name for part in names.values() for name in (read_names(part) or ())]
    if not isinstance(names, (list, tuple)):
        return None if names is None else (str(names),)
    flat: list[str] = []
    for name in names:
        flat.extend((read_names(name) or ()) if isinstance(name, (list, Mapping)) else (str(name),))
    return tuple(flat)


def column_array(values: np.ndarray) -> pa.Array:
    """Arrow array of (T, ...) values as LeRobot stores them.

    (T,) and (T, 1) become scalars, (T, D) fixed-size lists, more dimensions nested lists.
    """
    flat = pa.array(values.reshape(-1), type=_ARROW_TYPES[str(values.dtype)])
    if values.shape[1:] in ((), (1,)):
        return flat
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    for size in reversed(values.shape[1:]):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat


def column_values(
    column: pa.ChunkedArray, shape: Sequence[int], what: str = "A column"
) -> np.ndarray:
    """Inverse of `column_array`: (T, *shape); an empty shape gives (T,).

    DataError, naming `what` it is, if a row has no value, or another number of them.
    """
    flat: Any = column.combine_chunks()
    rows = len(flat)
    while any(is_nested(flat.type) for is_nested in _NESTED):
        flat = flat.flatten()
    values: np.ndarray = flat.to_numpy(zero_copy_only=False)
    wanted = (rows, *shape)
    if values.size != np.prod(wanted):
        lacks = values.size < np.prod(wanted)
        raise DataError(
            f"{what} lacks values" if lacks else f"{what} has more values than meta/info.json says",
            got=f"{values.size} values in {rows} rows",
            expected=f"{int(np.prod(shape))} in every row",
            fix="mend or leave out the rows that are empty"
            if lacks
            else "correct the feature's shape in meta/info.json, or the rows that are too long",
        )
    return values.reshape(wanted)


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """tasks.parquet: `task_index`, with the task's text as pandas index (as LeRobot reads it)."""
    columns = [
        {
            "name": name,
            "field_name": name,
            "pandas_type": pandas_type,
            "numpy_type": numpy_type,
            "metadata": None,
        }
        for name, pandas_type, numpy_type in (
            ("task_index", "int64", "int64"),
            ("task", "unicode", "object"),
        )
    ]
    metadata = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table(
        {
            "task_index": pa.array(range(len(tasks)), type=pa.int64()),
            "task": pa.array(list(tasks), type=pa.string()),
        }
    )
    return table.replace_schema_metadata({"pandas": json.dumps(metadata)})


def file_indices(file_number: int) -> dict[str, int]:
    """Chunk and file index of the n-th file of a kind."""
    return {
        "chunk_index": file_number // FILES_PER_CHUNK,
        "file_index": file_number % FILES_PER_CHUNK,
    }


def data_path(root: Path, file_number: int) -> Path:
    """Path of the n-th data file."""
    return root / DATA_PATH.format(**file_indices(file_number))


def episodes_path(root: Path, file_number: int) -> Path:
    """Path of the n-th file of episode rows."""
    return root / EPISODES_PATH.format(**file_indices(file_number))


def video_path(root: Path, video_key: str, file_number: int) -> Path:
    """Path of the n-th mp4 of a camera."""
    return root / VIDEO_PATH.format(video_key=video_key, **file_indices(file_number))
