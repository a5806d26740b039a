"""Small data sets as a lab records them: LeRobot v2.0, v2.1 and v3.0, laid out by hand.

Two cameras, named as the lab likes; a state with names under a heading; deltas of 7 values; no
labels, no ready-made chunks. Nothing here uses the package's writer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
SIZE = (48, 64)
CAMERAS = ("top", "wrist_cam")
STATE = {"motors": ["Left.X", "Left.Y", "yaw pos", "gripper.pos"]}
ACTION = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
TASKS = ("pick up the red cube", "open the drawer")
LENGTHS = (5, 9, 4, 7)


class LabEpisode:
    """Pictures that tell their episode, frame and camera by colour, and random numbers."""

    def __init__(self, number: int, length: int) -> None:
        rng = np.random.default_rng([77, number])
        self.task = number % 2
        self.state = rng.normal(size=(length, 4)).astype(np.float32)
        self.action = rng.normal(scale=0.05, size=(length, 7)).astype(np.float32)
        self.action[:, 6] = rng.integers(0, 2, length)
        self.images = {
            camera: np.stack([make_picture(number, frame, k) for frame in range(length)])
            for k, camera in enumerate(CAMERAS)
        }

    def __len__(self) -> int:
        return len(self.state)


def make_picture(episode: int, frame: int, camera: int) -> np.ndarray:
    """A smooth picture (48, 64, 3) whose mean colour is its name."""
    picture = np.empty((*SIZE, 3), dtype=np.uint8)
    picture[:] = (40 + 25 * episode, 30 + 20 * frame, 60 + 90 * camera)
    picture[: SIZE[0] // 2, :, 2] += 40
    return picture


def make_episodes(lengths: Sequence[int] = LENGTHS) -> list[LabEpisode]:
    return [LabEpisode(number, length) for number, length in enumerate(lengths)]


def encode(path: Path, frames: np.ndarray, *, codec: str = "libx264", gop: int = 2) -> None:
    """Write an mp4 as recorders do: yuv420p, key frames `gop` apart, B-frames where allowed.

    Two encodings may differ in bytes, if seldom (on a busy machine 10 of 3200 clips by several
    threads, up to 5 of 200 by one in some processes): for the same file again, copy it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": str(gop), "crf": "18", "threads": "1"}
    options["preset"] = "8" if codec == "libsvtav1" else "veryfast"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def table_of(
    episodes: Sequence[LabEpisode], first: int, index: int, *, pictures: bool = False
) -> pa.Table:
    """Rows of some episodes; `first` is the number of the first of them, `index` of its row."""
    columns: dict[str, list[Any]] = {}
    for number, episode in enumerate(episodes, first):
        for frame in range(len(episode)):
            row: dict[str, Any] = {
                "observation.state": episode.state[frame].tolist(),
                "action": episode.action[frame].tolist(),
                "timestamp": np.float32(frame / FPS),
                "frame_index": frame,
                "episode_index": number,
                "index": index,
                "task_index": episode.task,
            }
            if pictures:
                for camera in CAMERAS:
                    file = io.BytesIO()
                    Image.fromarray(episode.images[camera][frame]).save(file, "PNG")
                    cell = {"bytes": file.getvalue(), "path": f"frame_{frame:06d}.png"}
                    row[f"observation.images.{camera}"] = cell
            index += 1
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    lists = pa.list_(pa.float32())
    types = {"observation.state": lists, "action": lists, "timestamp": pa.float32()}
    return pa.table({name: pa.array(v, type=types.get(name)) for name, v in columns.items()})


def make_info(version: str, episodes: Sequence[LabEpisode], *, pictures: bool) -> dict[str, Any]:
    image = {
        "dtype": "image" if pictures else "video",
        "shape": [3, *SIZE],  # this recorder puts channels first
        "names": ["channels", "height", "width"],
    }
    index = {"shape": [1], "names": None}
    features = {
        **{f"observation.images.{camera}": image for camera in CAMERAS},
        "observation.state": {"dtype": "float32", "shape": [4], "names": STATE},
        "action": {"dtype": "float32", "shape": [7], "names": ACTION},
        "timestamp": {"dtype": "float32", **index},
        **{
            name: {"dtype": "int64", **index}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }
    return {
        "codebase_version": version,
        "robot_type": "lab_arm",
        "total_episodes": len(episodes),
        "total_frames": sum(map(len, episodes)),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
    }


def write_v2(
    root: Path,
    episodes: Sequence[LabEpisode],
    *,
    version: str = "v2.1",
    pictures: bool = False,
    **video: Any,
) -> Path:
    """A file for every episode. `pictures`: PNG in the tables instead of videos."""
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    clips = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    index = 0
    for number, episode in enumerate(episodes):
        path = root / data.format(episode_chunk=0, episode_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of([episode], number, index, pictures=pictures), path)
        index += len(episode)
        for camera in () if pictures else CAMERAS:
            place = clips.format(
                episode_chunk=0, video_key=f"observation.images.{camera}", episode_index=number
            )
            encode(root / place, episode.images[camera], **video)
    info = make_info(version, episodes, pictures=pictures)
    info |= {"data_path": data, "video_path": None if pictures else clips}
    write_lines(root / "meta/info.json", [info])
    write_lines(
        root / "meta/tasks.jsonl", [{"task_index": n, "task": t} for n, t in enumerate(TASKS)]
    )
    rows = [
        {"episode_index": n, "tasks": [TASKS[e.task]], "length": len(e)}
        for n, e in enumerate(episodes)
    ]
    write_lines(root / "meta/episodes.jsonl", rows)
    return root


def write_v3(
    root: Path,
    episodes: Sequence[LabEpisode],
    *,
    table_borders: Sequence[int] = (0, 3),
    video_borders: Sequence[int] = (0, 2),
    **video: Any,
) -> Path:
    """Several episodes in a file; tables and videos change files after different episodes."""
    info = make_info("v3.0", episodes, pictures=False)
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write_lines(root / "meta/info.json", [info])
    starts = np.concatenate([[0], np.cumsum([len(e) for e in episodes])])
    rows: list[dict[str, Any]] = []
    for number, episode in enumerate(episodes):
        file = max(k for k, border in enumerate(table_borders) if border <= number)
        clip = max(k for k, border in enumerate(video_borders) if border <= number)
        start_s = (starts[number] - starts[video_borders[clip]]) / FPS
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [TASKS[episode.task]],
            "length": len(episode),
            "data/chunk_index": 0,
            "data/file_index": file,
            "dataset_from_index": int(starts[number]),
            "dataset_to_index": int(starts[number + 1]),
        }
        for camera in CAMERAS:
            prefix = f"videos/observation.images.{camera}/"
            row |= {prefix + "chunk_index": 0, prefix + "file_index": clip}
            row |= {prefix + "from_timestamp": start_s}
            row |= {prefix + "to_timestamp": start_s + len(episode) / FPS}
        rows.append(row)
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": list(range(len(TASKS))), "__index_level_0__": list(TASKS)})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    for file, first in enumerate(table_borders):
        after = [*table_borders, len(episodes)][file + 1]
        table = table_of(episodes[first:after], first, int(starts[first]))
        pq.write_table(table, root / f"data/chunk-000/file-{file:03d}.parquet")
    for clip, first in enumerate(video_borders):
        after = [*video_borders, len(episodes)][clip + 1]
        for camera in CAMERAS:
            frames = np.concatenate([e.images[camera] for e in episodes[first:after]])
            path = root / f"videos/observation.images.{camera}/chunk-000/file-{clip:03d}.mp4"
            encode(path, frames, **video)
    return root


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def correct_tasks(root: Path, correct: Callable[[str], str]) -> None:
    """Change the tasks' texts alone, as a hand would that edits a data set's meta folder."""
    path = root / "meta/tasks.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [{**row, "task": correct(row["task"])} for row in rows])
        return
    path = root / "meta/tasks.parquet"
    table = pq.read_table(path)
    name = "task" if "task" in table.column_names else "__index_level_0__"
    place = table.column_names.index(name)
    texts = pa.array([correct(text) for text in table[name].to_pylist()])
    pq.write_table(table.set_column(place, name, texts), path)
