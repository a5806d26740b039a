"""The LeRobot v3.0 writer and reader: what goes in comes out; a killed run loses only its tail."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import SCHEMA, TASKS, make_record, write_dataset

from training.data.layout import (
    INDEX_FEATURES,
    DatasetSchema,
    EpisodeRecord,
    Feature,
    column_array,
    column_values,
    data_path,
    episodes_path,
    video_path,
)
from training.data.reader import LeRobotReader
from training.data.schema import ACTION_KEY, CHUNK_KEY, STATE_KEY, VIDEO_KEY
from training.data.video import decode_video, encode_video
from training.data.writer import LeRobotWriter
from vla_align_ros.errors import DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[EpisodeRecord]]:
    root = tmp_path_factory.mktemp("lerobot") / "tiny"
    return root, write_dataset(root, 8)


def test_every_column_comes_back_exactly(dataset: tuple[Path, list[EpisodeRecord]]) -> None:
    root, records = dataset
    columns = LeRobotReader(root).columns()
    for key in SCHEMA.table_keys:
        np.testing.assert_array_equal(
            columns[key], np.concatenate([record.columns[key] for record in records])
        )
        assert columns[key].dtype == np.float32


def test_index_columns_count_as_lerobot_counts(
    dataset: tuple[Path, list[EpisodeRecord]],
) -> None:
    root, records = dataset
    columns = LeRobotReader(root).columns()
    lengths = [len(record) for record in records]
    assert {key: str(columns[key].dtype) for key in INDEX_FEATURES} == INDEX_FEATURES
    np.testing.assert_array_equal(columns["index"], np.arange(sum(lengths)))
    np.testing.assert_array_equal(columns["episode_index"], np.repeat(np.arange(8), lengths))
    frame = np.concatenate([np.arange(n) for n in lengths])
    np.testing.assert_array_equal(columns["frame_index"], frame)
    np.testing.assert_array_equal(columns["timestamp"], (frame / 5).astype(np.float32))
    tasks = LeRobotReader(root).tasks
    assert [tasks[t] for t in columns["task_index"][frame == 0]] == [r.task for r in records]


def test_episode_rows_point_at_their_rows_and_frames(
    dataset: tuple[Path, list[EpisodeRecord]],
) -> None:
    root, records = dataset
    reader = LeRobotReader(root)
    start = 0
    for row, record in zip(reader.episodes.to_pylist(), records, strict=True):
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (start, start + len(record))
        assert row["length"] == len(record) and row["tasks"] == [record.task]
        template = reader.info["video_path"]
        path = root / template.format(
            video_key=VIDEO_KEY,
            chunk_index=row[f"videos/{VIDEO_KEY}/chunk_index"],
            file_index=row[f"videos/{VIDEO_KEY}/file_index"],
        )
        first = round(row[f"videos/{VIDEO_KEY}/from_timestamp"] * 5)
        after = round(row[f"videos/{VIDEO_KEY}/to_timestamp"] * 5)
        shown = np.stack(list(decode_video(path))[first:after]).astype(float)
        assert np.abs(shown - record.images[VIDEO_KEY]).mean() < 3.0
        start += len(record)


def test_frames_follow_the_rows_across_files(dataset: tuple[Path, list[EpisodeRecord]]) -> None:
    root, records = dataset
    assert len(list((root / "videos").rglob("*.mp4"))) == 3
    frames = np.stack(list(LeRobotReader(root).frames(VIDEO_KEY))).astype(float)
    given_frames = np.concatenate([record.images[VIDEO_KEY] for record in records])
    assert frames.shape == given_frames.shape
    assert np.abs(frames - given_frames).mean(axis=(1, 2, 3)).max() < 3.0


def test_video_shifts_no_brightness_and_keeps_the_colour_of_small_things(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = np.full((4, 64, 64, 3), 120, dtype=np.uint8)
    frames += rng.integers(-3, 4, frames.shape).astype(np.uint8)
    frames[:, 30:33, 30:33] = (240, 110, 20)  # three orange pixels on grey
    encode_video(tmp_path / "a.mp4", frames, 5)
    shown = np.stack(list(decode_video(tmp_path / "a.mp4"))).astype(float)
    assert np.abs((shown - frames).mean(axis=(0, 1, 2))).max() < 0.3
    assert np.abs(shown[:, 31, 31] - (240, 110, 20)).max() < 20


def test_video_is_random_access_at_every_second_frame(tmp_path: Path) -> None:
    import av

    frames = np.repeat(make_record(0).images[VIDEO_KEY][:1], 6, axis=0)
    encode_video(tmp_path / "a.mp4", frames, 5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        assert [bool(packet.is_keyframe) for packet in packets[:4]] == [True, False, True, False]
        assert [float(packet.pts * packet.time_base) for packet in packets[:3]] == [0.0, 0.2, 0.4]


def test_statistics_are_those_of_the_data(dataset: tuple[Path, list[EpisodeRecord]]) -> None:
    root, records = dataset
    stats = LeRobotReader(root).stats
    state = np.concatenate([record.columns[STATE_KEY] for record in records]).astype(float)
    np.testing.assert_allclose(stats[STATE_KEY]["mean"], state.mean(0))
    np.testing.assert_allclose(stats[STATE_KEY]["std"], state.std(0))
    np.testing.assert_allclose(stats[STATE_KEY]["q01"], np.quantile(state, 0.01, axis=0))
    assert stats[STATE_KEY]["count"] == [len(state)]
    images = np.concatenate([record.images[VIDEO_KEY] for record in records])[:, ::2, ::2]
    mean = images.reshape(-1, 3).mean(0) / 255
    assert np.shape(stats[VIDEO_KEY]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats[VIDEO_KEY]["mean"]), mean)
    std = (images.reshape(-1, 3) / 255).std(0)
    np.testing.assert_allclose(np.ravel(stats[VIDEO_KEY]["std"]), std)


def test_tasks_table_has_the_text_as_pandas_index(
    dataset: tuple[Path, list[EpisodeRecord]],
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not needed, but lerobot reads with it")
    tasks = pandas.read_parquet(dataset[0] / "meta/tasks.parquet")
    assert list(tasks.index) == list(TASKS)
    assert list(tasks.columns) == ["task_index"]
    assert tasks.loc[TASKS[1]].task_index == 1


def test_info_declares_what_the_files_hold(dataset: tuple[Path, list[EpisodeRecord]]) -> None:
    root, records = dataset
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 5
    assert (info["total_episodes"], info["total_tasks"]) == (8, 3)
    assert info["total_frames"] == sum(len(record) for record in records)
    assert info["features"][CHUNK_KEY]["shape"] == [8, 7]
    stored = set(pq.read_schema(data_path(root, 0)).names)
    assert stored == set(info["features"]) - {VIDEO_KEY}
    assert DatasetSchema.from_info(info) == SCHEMA


@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_columns_of_any_shape_survive_parquet(shape: list[int], rows: int, seed: int) -> None:
    import pyarrow as pa

    values = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)
    column = pa.chunked_array([column_array(values)])
    np.testing.assert_array_equal(column_values(column, shape), values)


def table_content(root: Path) -> dict[str, list[object]]:
    reader = LeRobotReader(root)
    return {
        "rows": [{k: v.tolist() for k, v in reader.columns().items()}],
        "episodes": reader.episodes.to_pylist(),
        "tasks": list(reader.tasks),
        "stats": [reader.stats],
    }


@pytest.mark.parametrize("lost", ["nothing", "episode rows", "data and episode rows"])
def test_a_killed_run_continues_to_the_same_tables(tmp_path: Path, lost: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_dataset(whole, 9)
    write_dataset(broken, 6)
    shutil.copy(broken / "meta/info.json", tmp_path / "info.json")
    writer = LeRobotWriter(broken, SCHEMA, episodes_per_file=3)
    for number in range(6, 9):
        writer.append(make_record(number))
    if lost != "nothing":  # killed between two renames: the shard has no episode rows yet
        episodes_path(broken, 2).unlink()
        shutil.copy(tmp_path / "info.json", broken / "meta/info.json")
    if lost == "data and episode rows":
        data_path(broken, 2).unlink()
        (data_path(broken, 2).parent / ".file-002.parquet.tmp").write_bytes(b"half")
    writer = LeRobotWriter(broken, SCHEMA, episodes_per_file=3)
    assert writer.num_episodes == (9 if lost == "nothing" else 6)
    assert video_path(broken, VIDEO_KEY, 2).exists() == (lost == "nothing")
    assert not list(broken.rglob("*.tmp"))
    for number in range(writer.num_episodes, 9):
        writer.append(make_record(number))
    writer.flush()
    assert table_content(broken) == table_content(whole)


def test_a_dataset_killed_before_its_counts_asks_to_be_continued(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 0}))
    with pytest.raises(DataError, match=r"not closed cleanly.*same `vla-align collect`"):
        LeRobotReader(tmp_path)
    LeRobotWriter(tmp_path, SCHEMA)
    assert LeRobotReader(tmp_path).info["total_episodes"] == 3


def test_another_schema_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1)
    other = DatasetSchema(10, SCHEMA.features)
    with pytest.raises(DataError, match="another kind of dataset"):
        LeRobotWriter(tmp_path, other)


def test_an_older_pixel_format_is_continued_as_it_is(tmp_path: Path) -> None:
    older = DatasetSchema(SCHEMA.fps, SCHEMA.features, SCHEMA.robot_type, "yuv420p")
    writer = LeRobotWriter(tmp_path, older)
    writer.append(make_record(0))
    writer.flush()
    assert LeRobotWriter(tmp_path, SCHEMA).schema.pixel_format == "yuv420p"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.columns.pop(ACTION_KEY), "does not fit the dataset"),
        (lambda r: r.columns.update({STATE_KEY: r.columns[STATE_KEY][:, :6]}), "observation.state"),
        (lambda r: r.columns.update({ACTION_KEY: r.columns[ACTION_KEY].astype(float)}), "float64"),
        (lambda r: r.images.update({VIDEO_KEY: r.images[VIDEO_KEY][:-1]}), VIDEO_KEY),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(
    tmp_path: Path, change: object, message: str
) -> None:
    record = make_record(0)
    record = EpisodeRecord(record.task, dict(record.images), dict(record.columns))
    change(record)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        LeRobotWriter(tmp_path, SCHEMA).append(record)


def test_foreign_and_damaged_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*info\.json"):
        LeRobotReader(tmp_path / "nowhere")
    write_dataset(tmp_path, 2)
    path = video_path(tmp_path, VIDEO_KEY, 0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        list(LeRobotReader(tmp_path).frames(VIDEO_KEY))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(DataError, match=r"got v1\.6; expected v3\.0, v2\.1 or v2\.0"):
        LeRobotReader(tmp_path)


def test_unknown_columns_are_named(dataset: tuple[Path, list[EpisodeRecord]]) -> None:
    with pytest.raises(DataError, match="force_torque"):
        LeRobotReader(dataset[0]).columns(["force_torque"])


def test_the_content_hash_names_the_content(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("c", 1)):
        write_dataset(tmp_path / name, 2, seed=seed)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b, c = (LeRobotReader(tmp_path / name).content_hash() for name in "abc")
    assert a == b != c


def test_scalar_features_have_no_list_around_them() -> None:
    import pyarrow as pa

    assert column_array(np.arange(3)).type == pa.int64()
    assert Feature("float32", (1,)).to_dict(5)["shape"] == [1]


@pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None,
    reason="lerobot is not installed (it needs Python 3.12 and pins its own torch)",
)
def test_lerobots_own_reader_opens_it(dataset: tuple[Path, list[EpisodeRecord]]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, records = dataset
    opened = LeRobotDataset("local/tiny", root=root, video_backend="pyav")
    assert (opened.num_episodes, len(opened)) == (8, sum(len(record) for record in records))
    last = opened[len(opened) - 1]
    assert last["task"] == records[-1].task
    np.testing.assert_array_equal(last[CHUNK_KEY].numpy(), records[-1].columns[CHUNK_KEY][-1])
