"""LeRobot data of every layout gives the same rows and pictures, in order or at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lab_data import (
    CAMERAS,
    LENGTHS,
    TASKS,
    LabEpisode,
    correct_tasks,
    make_episodes,
    write_v2,
    write_v3,
)

from training.data.frames import FrameStore, cache_key
from training.data.pictures import OnlinePictures, RawPictures
from training.data.reader import LeRobotReader
from training.data.video import VideoReader, decode_numbered
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import DataError

KEY = "observation.images.wrist_cam"
Writer = Callable[[Path, list[LabEpisode]], Path]
LAYOUTS: dict[str, Writer] = {
    "v2.1": lambda root, episodes: write_v2(root, episodes),
    "v2.0": lambda root, episodes: write_v2(root, episodes, version="v2.0", gop=30),
    "v2.1 av1": lambda root, episodes: write_v2(root, episodes, codec="libsvtav1"),
    "v2.1 tables": lambda root, episodes: write_v2(root, episodes, pictures=True),
    "v3.0": lambda root, episodes: write_v3(root, episodes),
    "v3.0 long": lambda root, episodes: write_v3(root, episodes, gop=250),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def dataset(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[LabEpisode]]:
    episodes = make_episodes()
    return LAYOUTS[request.param](tmp_path_factory.mktemp("lab") / "data", episodes), episodes


def test_rows_episodes_and_tasks_are_those_recorded(
    dataset: tuple[Path, list[LabEpisode]],
) -> None:
    reader = LeRobotReader(dataset[0])
    columns = reader.columns()
    for key, name in (("observation.state", "state"), ("action", "action")):
        recorded = np.concatenate([getattr(episode, name) for episode in dataset[1]])
        np.testing.assert_array_equal(columns[key], recorded)
    assert reader.tasks == list(TASKS) and reader.rate_hz == 10.0
    assert reader.episodes["length"].to_pylist() == list(LENGTHS)
    np.testing.assert_array_equal(columns["index"], np.arange(sum(LENGTHS)))
    assert reader.episode_starts.tolist() == [0, 5, 14, 18, 25]
    assert reader.schema.features["observation.state"].names == (
        "Left.X",
        "Left.Y",
        "yaw pos",
        "gripper.pos",
    )
    assert reader.schema.features[KEY].picture_size == (48, 64)


def test_every_picture_is_its_row_s_in_order_and_at_random(
    dataset: tuple[Path, list[LabEpisode]], tmp_path: Path
) -> None:
    reader = LeRobotReader(dataset[0])
    transform = ImageTransform(size=32)
    stored = FrameStore(reader, KEY, transform, cache_dir=tmp_path)
    camera = CAMERAS[1]
    recorded = np.concatenate([episode.images[camera] for episode in dataset[1]])
    wanted = np.stack([transform.resize(image) for image in recorded]).astype(int)
    assert np.abs(stored.frames - wanted).max() < 12  # frames are 20 levels apart
    rows = np.random.default_rng(0).permutation(len(reader)).repeat(2)
    online = OnlinePictures(reader, KEY, transform)
    np.testing.assert_array_equal(online.get(rows), stored.get(rows))
    keeping = OnlinePictures(reader, KEY, transform, capacity_bytes=7 * 32 * 32 * 3)
    for _ in range(2):  # the second time, seven come from memory
        np.testing.assert_array_equal(keeping.get(rows), stored.get(rows))
    raw = RawPictures(reader, KEY)
    assert np.abs(raw.picture(6).astype(int) - recorded[6]).mean() < 6


def test_an_episode_s_frames_can_be_had_alone(dataset: tuple[Path, list[LabEpisode]]) -> None:
    reader = LeRobotReader(dataset[0])
    if KEY not in reader.schema.video_keys:
        pytest.skip("pictures lie in the tables of this layout, not in videos")
    frames = np.stack(list(reader.episode_frames(KEY, 2))).astype(int)
    assert np.abs(frames - dataset[1][2].images["wrist_cam"]).mean() < 6


def test_content_and_layout_decide_the_hash(tmp_path: Path) -> None:
    one = write_v2(tmp_path / "a", make_episodes())
    same = shutil.copytree(one, tmp_path / "elsewhere/b")
    other = write_v2(tmp_path / "c", make_episodes((5, 9, 4, 6)))
    hashes = [LeRobotReader(root).content_hash() for root in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("layout", ["v2.1", "v3.0"])
def test_words_and_names_change_what_numbers_mean_and_no_picture(
    tmp_path: Path, layout: str
) -> None:
    plain = LAYOUTS[layout](tmp_path / "plain", make_episodes())
    spoken, named = (shutil.copytree(plain, tmp_path / name) for name in ("spoken", "named"))
    correct_tasks(spoken, lambda text: text.upper())
    info = json.loads((named / "meta/info.json").read_text())
    info["features"]["action"]["names"] = info["features"]["action"]["names"][::-1]
    (named / "meta/info.json").write_text(json.dumps(info))
    readers = [LeRobotReader(root) for root in (plain, spoken, named)]
    assert readers[1].tasks == [task.upper() for task in readers[0].tasks]
    assert len({reader.content_hash() for reader in readers}) == 1
    assert len({reader.meaning_hash() for reader in readers}) == 3
    assert readers[0].meaning_hash() == LeRobotReader(plain).meaning_hash()
    keys = {cache_key(reader, KEY, ImageTransform(size=32)) for reader in readers}
    assert len(keys) == 1


def test_tables_that_disagree_are_one_clear_error(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes())
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    changed = [lines[0].replace('"length": 5', '"length": 6'), *lines[1:]]
    (root / "meta/episodes.jsonl").write_text("\n".join(changed))
    with pytest.raises(DataError, match=r"disagree: got 25 rows, 26 in .*; expected 25"):
        LeRobotReader(root).columns(["action"])
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0}\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl.*\['length', 'tasks'\]"):
        LeRobotReader(root)
    (root / "data/chunk-000/episode_000002.parquet").write_bytes(b"not parquet")
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"Cannot read the table .*episode_000002\.parquet"):
        LeRobotReader(root).columns(["action"])


def replace_column(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path)
    place = table.column_names.index(name)
    changed = pa.array(change(table[name].to_pylist()), type=table[name].type)
    pq.write_table(table.set_column(place, name, changed), path)


def test_episodes_that_leave_out_numbers_are_one_clear_error(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes((3, 2)))
    lines = (root / "meta/episodes.jsonl").read_text()
    (root / "meta/episodes.jsonl").write_text(
        lines.replace('"episode_index": 1', '"episode_index": 5')
    )
    with pytest.raises(DataError, match=r"not numbered .*: got episode 5 in place 1; .* 0 to 1"):
        LeRobotReader(root)


def test_episode_rows_in_another_order_are_read_in_that_of_their_numbers(tmp_path: Path) -> None:
    episodes = make_episodes((5, 9, 4))
    root = write_v3(tmp_path, episodes)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).take([2, 0, 1]), path)
    reader = LeRobotReader(root)
    assert reader.episode_starts.tolist() == [0, 5, 14, 18]
    pictures = RawPictures(reader, "observation.images.top")
    shown = pictures.picture(6).astype(int)
    assert np.abs(shown - episodes[1].images["top"][1]).mean() < 6


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("episode_index", lambda rows: [1] * 4 + [0] * 3, "episode_index 1 in row 0"),
        ("episode_index", lambda rows: [0] * 4 + [1] * 3, "episode_index 0 in row 3"),
        ("frame_index", lambda rows: [0, 1, 3, 0, 1, 2, 3], "frame_index 3 in row 2"),
    ],
)
def test_rows_out_of_order_are_refused_instead_of_mixed_up(
    tmp_path: Path, name: str, change: Any, told: str
) -> None:
    root = write_v3(tmp_path, make_episodes((3, 4)), table_borders=(0,), video_borders=(0,))
    replace_column(root / "data/chunk-000/file-000.parquet", name, change)
    with pytest.raises(DataError, match=f"out of order: got {told}"):
        LeRobotReader(root).columns()


@pytest.mark.parametrize(
    "file",
    ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"],
)
def test_damaged_tables_of_the_meta_folder_are_named(tmp_path: Path, file: str) -> None:
    root = write_v3(tmp_path, make_episodes((3, 4)), table_borders=(0,), video_borders=(0,))
    (root / file).write_bytes(b"cut")
    with pytest.raises(DataError, match=f"Cannot read the table .*{file}"):
        LeRobotReader(root)


def test_a_table_that_is_missing_is_named_before_anything_is_hashed(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes((3, 2)))
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises(DataError, match=r"Cannot read the table .*episode_000001\.parquet"):
        LeRobotReader(root).tables_hash()


def test_what_the_meta_tables_lack_is_named(tmp_path: Path) -> None:
    root = write_v3(tmp_path, make_episodes((3, 4)), table_borders=(0,), video_borders=(0,))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns([f"videos/{KEY}/from_timestamp"]), path)
    with pytest.raises(DataError, match=f"lacks columns: got no videos/{KEY}/from_timestamp"):
        LeRobotReader(root).clips(KEY)
    pq.write_table(pa.table({"task_index": [0], "words": ["a"]}), root / "meta/tasks.parquet")
    with pytest.raises(DataError, match=r"tasks\.parquet lacks columns: got no task;"):
        LeRobotReader(root)


def test_a_camera_of_which_nothing_more_was_written_is_read(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes((3, 4)))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][KEY]["info"] = None  # as lerobot leaves it until the first video
    (root / "meta/info.json").write_text(json.dumps(info))
    assert LeRobotReader(root).schema.video_keys == tuple(
        f"observation.images.{camera}" for camera in CAMERAS
    )
    info["features"]["action"]["shape"] = None
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"info\.json cannot be read: got TypeError"):
        LeRobotReader(root)


def test_what_the_description_lacks_is_named(tmp_path: Path) -> None:
    root = write_v3(tmp_path, make_episodes((3, 4)), table_borders=(0,), video_borders=(0,))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
    with pytest.raises(DataError, match=r"file-000\.parquet lacks columns: got no length"):
        LeRobotReader(root)
    info = json.loads((root / "meta/info.json").read_text())
    for key in ("fps", "features", "total_episodes", "total_frames"):
        rest = {name: value for name, value in info.items() if name != key}
        (root / "meta/info.json").write_text(json.dumps(rest))
        with pytest.raises(DataError, match=f"info.json lacks entries: got no {key}"):
            LeRobotReader(root)


@pytest.mark.parametrize("gop", [1, 4, 100])
def test_random_access_gives_the_frame_that_decoding_in_order_gives(
    tmp_path: Path, gop: int
) -> None:
    from lab_data import encode

    frames = np.concatenate([episode.images["top"] for episode in make_episodes((9, 9, 9))])
    encode(tmp_path / "a.mp4", frames, gop=gop)
    in_order: dict[int, Any] = dict(decode_numbered(tmp_path / "a.mp4", 10))
    assert sorted(in_order) == list(range(27))
    reader = VideoReader(tmp_path / "a.mp4", 10)
    order = np.random.default_rng(gop).integers(0, 27, 60)
    for number in [*order, *range(27), *range(26, -1, -1)]:
        np.testing.assert_array_equal(reader.frame(int(number)), in_order[int(number)])
    with pytest.raises(DataError, match="lacks frame 27"):
        reader.frame(27)
    np.testing.assert_array_equal(reader.frame(3), in_order[3])
    reader.close()
