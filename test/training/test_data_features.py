"""A store of features gives what the network would have given, and asks it once a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from numpy.typing import NDArray
from tiny_data import write_dataset
from tiny_teachers import make_dinov2

from training.alignment import compute_targets
from training.alignment.teachers import TeacherConfig, build_teacher
from training.data.config import AugmentConfig, DataConfig
from training.data.features import FeatureStore, pictures_key
from training.fingerprint import fingerprint_weights
from training.teacher_cache import CachePlan, RecordedPictures, open_teacher_store
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import ConfigurationError, DataError

ROUNDING = 2.0**-11  # float16's, relative
SIZE = 42


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    write_dataset(folder / "a", 5, seed=0)
    write_dataset(folder / "b", 4, seed=1)
    return folder / "a", folder / "b"


def open_pictures(*roots: Path, **settings: object) -> RecordedPictures:
    config = DataConfig(**{"image_size": SIZE, "decode": "online", **settings})  # type: ignore[arg-type]
    return RecordedPictures(roots, config, progress=False)


class Mean:
    """A network: mean colours of the rows of a picture. Counts the frames it has seen."""

    def __init__(self, data: RecordedPictures) -> None:
        self.data, self.frames = data, 0

    def __call__(self, indices: NDArray[np.int64]) -> torch.Tensor:
        self.frames += len(indices)
        return torch.from_numpy(self.data.images(indices)).float().mean(2) / 7.0


def test_each_root_is_computed_once(roots: tuple[Path, Path], tmp_path: Path) -> None:
    first, both = open_pictures(roots[0]), open_pictures(*roots)
    network = Mean(first)
    FeatureStore(first, "mean", network, tmp_path, progress=False)
    assert network.frames == len(first)
    network = Mean(both)
    store = FeatureStore(both, "mean", network, tmp_path, batch_size=3, progress=False)
    assert network.frames == len(both) - len(first) == store.computed
    assert len(list(tmp_path.iterdir())) == 2
    mixed = np.random.default_rng(0).permutation(len(both))
    torch.testing.assert_close(store.rows(mixed), Mean(both)(mixed), rtol=ROUNDING, atol=1e-4)
    swapped = open_pictures(roots[1], roots[0])
    network = Mean(swapped)
    store = FeatureStore(swapped, "mean", network, tmp_path, progress=False)
    assert network.frames == 0 == store.computed
    torch.testing.assert_close(store.rows(mixed), Mean(swapped)(mixed), rtol=ROUNDING, atol=1e-4)
    other = Mean(both)
    FeatureStore(both, "other", other, tmp_path, progress=False)
    assert other.frames == len(both)


def test_features_lie_beside_their_data_by_default(roots: tuple[Path, Path]) -> None:
    data = open_pictures(*roots)
    FeatureStore(data, "beside", Mean(data), progress=False)
    for root in roots:
        assert len(list((root / "cache").glob(f"features-beside-{SIZE}-*.npy"))) == 1


def test_an_interrupted_cache_goes_on_where_it_was(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    data = open_pictures(roots[0])
    network = Mean(data)

    def fail(indices: NDArray[np.int64]) -> torch.Tensor:
        if network.frames > 4:
            raise KeyboardInterrupt
        return network(indices)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(data, "mean", fail, tmp_path, batch_size=3, progress=False)
    assert not list(tmp_path.glob("features-*.npy"))
    again = Mean(data)
    store = FeatureStore(data, "mean", again, tmp_path, batch_size=3, progress=False)
    assert again.frames == len(data) - network.frames == store.computed > 0
    frames = np.arange(len(data))
    torch.testing.assert_close(store.rows(frames), Mean(data)(frames), rtol=ROUNDING, atol=1e-4)


def test_other_pictures_have_other_files(roots: tuple[Path, Path]) -> None:
    seen = [
        open_pictures(roots[0]),
        open_pictures(roots[1]),
        open_pictures(roots[0], image_size=SIZE + 14),
        open_pictures(roots[0], augment=AugmentConfig(enabled=True)),  # the robot's crop
    ]
    assert len({data.pictures_key(0) for data in seen}) == len(seen)
    assert open_pictures(*roots).pictures_key(1) == seen[1].pictures_key(0)


def test_cameras_and_their_order_are_told_apart(roots: tuple[Path, Path]) -> None:
    reader, transform = open_pictures(roots[0]).readers[0], ImageTransform(size=SIZE)
    cameras = ("one", "two"), ("two", "one"), ("one",), ("two",), ("one", "one")
    assert len({pictures_key(reader, names, transform) for names in cameras}) == len(cameras)


@pytest.mark.parametrize("value", [float("nan"), 7e4])
def test_what_float16_cannot_hold_is_refused(
    roots: tuple[Path, Path], tmp_path: Path, value: float
) -> None:
    def compute(indices: NDArray[np.int64]) -> torch.Tensor:
        features = torch.ones(len(indices), 4, 2)
        features[indices == 5] = value
        return features

    with pytest.raises(DataError, match="in 1 of frames 4 to 7"):
        FeatureStore(
            open_pictures(roots[0]), "bad", compute, tmp_path, batch_size=4, progress=False
        )


def test_weights_are_told_apart_to_the_last_bit() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    key = fingerprint_weights(state)
    assert key == fingerprint_weights(dict(reversed(state.items()))) and len(key) == 16
    nudged = state["a"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    others = [
        {**state, "a": nudged},
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "b": state["b"].half()},
        {"a": state["a"], "c": state["b"]},
    ]
    assert len({key, *map(fingerprint_weights, others)}) == 5


# -- teachers ---------------------------------------------------------------------------------
def test_cached_teacher_features_are_the_teachers_own(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    make_dinov2(tmp_path / "teacher")
    teacher = build_teacher(TeacherConfig(f"dinov2:{tmp_path / 'teacher'}"))
    data = open_pictures(*roots)
    store = open_teacher_store(data, teacher, 3, tmp_path, progress=False)
    assert store.width == teacher.width and store.computed == len(data)
    frames = np.random.default_rng(0).permutation(len(data))[:7]
    online = compute_targets(teacher, data.images(frames), 3)
    torch.testing.assert_close(store.rows(frames), online, rtol=2 * ROUNDING, atol=1e-4)
    assert open_teacher_store(data, teacher, 3, tmp_path, progress=False).computed == 0
    assert open_teacher_store(data, teacher, 2, tmp_path, progress=False).computed == len(data)
    shallow = build_teacher(TeacherConfig(teacher.name, layer=1))
    assert open_teacher_store(data, shallow, 3, tmp_path, progress=False).computed == len(data)


def test_augmented_pictures_are_not_cached() -> None:
    data = DataConfig(augment=AugmentConfig(enabled=True))
    with pytest.raises(ConfigurationError, match="another one in every epoch"):
        CachePlan(TeacherConfig(), data, 16, "bf16")
    with pytest.raises(ConfigurationError, match=r"data\.cache False"):
        CachePlan(TeacherConfig(), DataConfig(cache=False), 16, "bf16")
