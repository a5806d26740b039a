"""Training batches: the very bits of the robot's processor; split by scene."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_data import STATE_NAMES, make_processor, write_dataset

from training.data.config import DataConfig
from training.data.dataset import ActionChunkDataset, dataset_statistics
from training.data.frames import FrameStore
from training.data.reader import LeRobotReader
from training.data.schema import ACTION_KEY, CHUNK_KEY, STATE_KEY, VIDEO_KEY
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.processor import Observation
from vla_align_ros.errors import DataError


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    write_dataset(folder / "a", 7, seed=0)
    write_dataset(folder / "b", 5, seed=1)
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def dataset(roots: tuple[Path, Path]) -> ActionChunkDataset:
    return ActionChunkDataset(roots, make_processor(dataset_statistics(roots)))


def test_camera_pictures_are_the_recorded_frames_before_resizing(
    dataset: ActionChunkDataset, roots: tuple[Path, Path]
) -> None:
    pictures = [image for root in roots for image in LeRobotReader(root).frames(VIDEO_KEY)]
    indices = np.random.default_rng(3).permutation(len(dataset))[:12]
    found = dataset.camera_pictures(indices)
    assert np.array_equal(found, np.stack([pictures[index] for index in indices]))
    assert found.shape[1] != dataset.image_size


def test_statistics_follow_the_names_of_the_columns(tmp_path: Path) -> None:
    write_dataset(tmp_path, 6)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    del info["features"][CHUNK_KEY]
    names = info["features"][ACTION_KEY]["names"]
    config = DataConfig(action_names=tuple(names))

    def read(order: list[str]) -> tuple[float, ...]:
        info["features"][ACTION_KEY]["names"] = order
        (tmp_path / "meta/info.json").write_text(json.dumps(info))
        return tuple(dataset_statistics([tmp_path], config)["action"].mean)

    first = read(names)
    corrected = [names[1], names[0], *names[2:]]
    assert read(corrected) == (first[1], first[0], *first[2:])
    assert read(names) == first


def test_a_batch_is_bitwise_what_the_robot_computes(
    dataset: ActionChunkDataset, roots: tuple[Path, Path]
) -> None:
    readers = [LeRobotReader(root) for root in roots]
    pictures = [image for reader in readers for image in reader.frames(VIDEO_KEY)]
    tasks = [
        reader.tasks[task]
        for reader in readers
        for task in reader.columns(["task_index"])["task_index"]
    ]
    indices = np.random.default_rng(0).permutation(len(dataset))[:20]
    batch = {name: tensor.numpy() for name, tensor in dataset.batch(indices).items()}
    for position, index in enumerate(indices):
        observation = Observation(
            images={"front": pictures[index]},
            state=dataset.state[index],
            instruction=tasks[index],
            stamp_s=0.0,
        )
        wanted = dataset.processor.prepare(observation)
        assert set(wanted) <= set(batch)
        for name, array in wanted.items():
            assert batch[name].dtype == array.dtype
            assert batch[name][position].tobytes() == array[0].tobytes(), name


def test_targets_are_the_recorded_chunks(
    dataset: ActionChunkDataset, roots: tuple[Path, Path]
) -> None:
    chunks = np.concatenate([LeRobotReader(r).columns([CHUNK_KEY])[CHUNK_KEY] for r in roots])
    indices = np.array([0, len(dataset) - 1, 3])
    actions = dataset.batch(indices)["actions"].numpy()
    assert actions.shape == (3, 8, 7) and actions.dtype == np.float32
    np.testing.assert_array_equal(actions, dataset.processor.encode_actions(chunks[indices]))


def test_training_tells_some_of_each_chunk_by_a_draw_of_its_own(
    roots: tuple[Path, Path],
) -> None:
    processor = make_processor(dataset_statistics(roots), committed=3)
    dataset = ActionChunkDataset(roots, processor, seed=4)
    indices = np.repeat(dataset.indices("train"), 5)
    passes = np.tile(np.arange(5), len(indices) // 5)
    batch = dataset.batch(indices, pictures=False, passes=passes)
    mask, told = batch["committed_mask"].numpy(), batch["committed"].numpy()
    counts = mask.sum(axis=1)
    assert set(np.unique(counts)) == {0, 1, 2, 3}, "from none to all"
    assert 0.15 < np.mean(counts == 0) < 0.35
    assert (mask == (np.arange(3) < counts[:, None])).all(), "the first ones"
    wanted = np.where(mask[..., None], batch["actions"].numpy()[:, :3], 0.0)
    np.testing.assert_array_equal(told, wanted)
    order = np.random.default_rng(0).permutation(len(indices))[:7]
    again = dataset.batch(indices[order], pictures=False, passes=passes[order])
    np.testing.assert_array_equal(again["committed"], told[order])
    assert "committed" not in dataset.batch(indices, pictures=False), "measured without"


def test_rows_of_several_roots_keep_their_own_episodes(
    dataset: ActionChunkDataset, roots: tuple[Path, Path]
) -> None:
    first = len(LeRobotReader(roots[0]))
    assert list(np.unique(dataset.episode)) == list(range(12))
    assert dataset.episode[first] == 7 and dataset.root_id[first] == 1
    assert dataset.frame_index[first] == 0
    assert dataset.tasks == tuple(LeRobotReader(roots[0]).tasks)
    assert dataset.episode_seed[7] == 1000


def test_statistics_are_of_the_chunks_and_leave_the_gripper(roots: tuple[Path, Path]) -> None:
    statistics = dataset_statistics(roots)
    chunks = np.concatenate([LeRobotReader(r).columns([CHUNK_KEY])[CHUNK_KEY] for r in roots])
    flat = chunks.reshape(-1, 7).astype(float)
    np.testing.assert_allclose(statistics["action"].q99, np.quantile(flat, 0.99, axis=0))
    assert list(statistics["action"].mask) == [True] * 6 + [False]
    state = np.concatenate([LeRobotReader(r).columns([STATE_KEY])[STATE_KEY] for r in roots])
    np.testing.assert_allclose(statistics["state"].mean, state.astype(float).mean(0))
    assert dataset_statistics(roots, gripper_mask=True)["action"].mask.all()


def test_a_scene_is_in_one_split_even_across_datasets(tmp_path: Path) -> None:
    for name in ("a", "b"):  # the same scenes twice, as an expert's and a DAgger dataset can be
        write_dataset(tmp_path / name, 30, episodes_per_file=30)
    roots = (tmp_path / "a", tmp_path / "b")
    data = ActionChunkDataset(
        roots, make_processor(dataset_statistics(roots)), DataConfig(validation=0.3)
    )
    train, validation = data.indices("train"), data.indices("val")
    assert len(train) + len(validation) == len(data)
    seeds = [set(data.episode_seed[data.episode[part]]) for part in (train, validation)]
    assert not seeds[0] & seeds[1] and min(map(len, seeds)) > 2
    with pytest.raises(DataError, match="train or val"):
        data.indices("test")


def test_frames_are_decoded_once_and_cached_by_content(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    reader = LeRobotReader(roots[0])
    small = FrameStore(reader, VIDEO_KEY, ImageTransform(size=16), cache_dir=tmp_path)
    written = small.path.stat().st_mtime_ns
    again = FrameStore(reader, VIDEO_KEY, ImageTransform(size=16), cache_dir=tmp_path)
    assert again.path == small.path and again.path.stat().st_mtime_ns == written
    cropped = FrameStore(reader, VIDEO_KEY, ImageTransform(size=16, crop=0.5), cache_dir=tmp_path)
    other = FrameStore(
        LeRobotReader(roots[1]), VIDEO_KEY, ImageTransform(size=16), cache_dir=tmp_path
    )
    assert len({small.path, cropped.path, other.path}) == 3
    np.save(small.path, np.zeros((1, 16, 16, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="damaged"):
        FrameStore(reader, VIDEO_KEY, ImageTransform(size=16), cache_dir=tmp_path)


def test_a_frame_cache_that_cannot_be_kept_says_where_else(
    roots: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(folder: Path) -> None:
        FrameStore(LeRobotReader(roots[0]), VIDEO_KEY, ImageTransform(size=16), cache_dir=folder)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written.*--cache DIR"):
        fill(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        with pytest.raises(DataError, match=r"No space left.*--cache DIR"):
            fill(tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(DataError, match=r"does not fit the disk: got 0\.00 GB.*--cache DIR"):
            fill(tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []
    fill(tmp_path / "full")
    (kept,) = (tmp_path / "full").iterdir()
    assert kept.stat().st_blocks * 512 >= kept.stat().st_size  # nothing of it is a hole


def test_two_processes_that_decode_at_once_make_one_whole_cache(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    code = (
        "import sys; from training.data.frames import FrameStore\n"
        "from training.data.reader import LeRobotReader\n"
        "from vla_align_ros.contract.images import ImageTransform\n"
        "s = FrameStore(LeRobotReader(sys.argv[1]), sys.argv[2], ImageTransform(size=24),"
        " cache_dir=sys.argv[3])\n"
        "print(int(s.frames.astype(int).sum()))"
    )
    words = [sys.executable, "-c", code, str(roots[0]), VIDEO_KEY, str(tmp_path)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    reader = LeRobotReader(roots[0])
    transform = ImageTransform(size=24)
    wanted = sum(int(transform.resize(i).astype(int).sum()) for i in reader.frames(VIDEO_KEY))
    assert [int(text) for text in sums] == [wanted] * 3
    assert len(list(tmp_path.iterdir())) == 1  # no lock, no half-written file


def test_a_horizon_that_the_data_lacks_is_refused(roots: tuple[Path, Path]) -> None:
    from dataclasses import replace

    processor = make_processor(dataset_statistics(roots))
    spec = processor.spec
    processor.spec = replace(spec, action=replace(spec.action, horizon=9))
    with pytest.raises(DataError, match="chunks of 8 steps"):
        ActionChunkDataset(roots, processor)
    processor.spec = replace(spec, action=replace(spec.action, horizon=4))
    assert ActionChunkDataset(roots, processor).action_chunk.shape[1:] == (4, 7)


def test_no_data_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data"):
        dataset_statistics([])
    with pytest.raises(DataError, match="vla-align collect"):
        dataset_statistics([tmp_path])
    assert len(STATE_NAMES) == 7
