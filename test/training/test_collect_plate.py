"""Collecting the benchmark's demonstrations: each object on each table, labels where things are."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("mani_skill") is None:
    pytest.skip("needs the extra [benchmark]", allow_module_level=True)
if not os.environ.get("VLA_ALIGN_ASSETS"):
    pytest.skip(
        "needs the benchmark's assets: set VLA_ALIGN_ASSETS (see `vla-align assets`)",
        allow_module_level=True,
    )

from training.data.collect import collect
from training.data.collect_settings import CollectSettings
from training.data.layout import EpisodeRecord
from training.data.plate_rollout import PlateMaker
from training.data.reader import LeRobotReader
from training.data.rollout import EpisodeMaker, open_maker
from training.data.schema import ACTION_KEY, CHUNK_KEY, ENVIRONMENT_KEY, START_NOTE, VIDEO_KEY
from vla_align_ros.errors import DataError
from vla_align_ros.sim.put_on_plate.environments import ENVIRONMENT_STATE_NAMES as NAMES
from vla_align_ros.sim.put_on_plate.expert import PlateExpert

pytestmark = pytest.mark.filterwarnings("ignore")  # the simulator's own, about itself
SETTINGS = CollectSettings(env="put_on_plate", seed=3, size_px=(160, 120))
CLIPS = CollectSettings(env="put_on_plate", seed=3, size_px=(160, 120), record_frames=(2, 3))


@pytest.fixture(scope="module")
def maker() -> Iterator[EpisodeMaker]:
    made = open_maker(SETTINGS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def episodes(maker: EpisodeMaker) -> list[EpisodeRecord]:
    return [maker.make(number) for number in range(6)]


def label(episode: EpisodeRecord, *names: str) -> np.ndarray:
    return episode.columns[ENVIRONMENT_KEY][:, [NAMES.index(name) for name in names]]


def test_episodes_end_with_the_object_let_go_on_its_plate(episodes: list[EpisodeRecord]) -> None:
    for episode in episodes:
        apart = label(episode, "object_x", "object_y") - label(
            episode, "receptacle_x", "receptacle_y"
        )
        assert np.hypot(*apart[-1]) < 0.06 and label(episode, "held")[-1] == 0.0
        assert episode.columns[CHUNK_KEY].shape == (len(episode), 8, 7)
        np.testing.assert_array_equal(
            episode.columns[CHUNK_KEY][:-1, 1], episode.columns[ACTION_KEY][1:]
        )
    assert len({episode.task for episode in episodes}) == len(episodes)
    assert {str(episode.notes[START_NOTE]) for episode in episodes} > {"home"}


def test_labels_show_where_the_plate_is(episodes: list[EpisodeRecord]) -> None:
    """The plate is yellowish green; where nothing is in front of it, the picture is, too."""
    from_home = [episode for episode in episodes if episode.notes[START_NOTE] == "home"]
    assert from_home
    for episode in from_home:
        u, v = label(episode, "receptacle_u", "receptacle_v")[0]
        height, width = episode.images[VIDEO_KEY].shape[1:3]
        row, column = int(v * height), int(u * width)
        patch = episode.images[VIDEO_KEY][0, row : row + 6, column - 8 : column + 8].reshape(-1, 3)
        yellow = patch[:, 1].astype(int) - patch[:, 2] > 40
        assert yellow.mean() > 0.8, (u, v)


def test_the_object_is_seen_to_come_to_the_plate(episodes: list[EpisodeRecord]) -> None:
    for episode in episodes:
        apart = label(episode, "object_u", "object_v") - label(
            episode, "receptacle_u", "receptacle_v"
        )
        assert np.abs(apart[-1]).max() < 0.1
        if episode.notes[START_NOTE] == "home":
            assert np.hypot(*apart[0]) > 0.1


def test_the_expert_goes_on_from_what_is_there(maker: EpisodeMaker) -> None:
    """After a push or a policy it carries what is held, and leaves alone what lies on the plate."""
    assert isinstance(maker, PlateMaker)
    maker._begin(np.random.default_rng(0), 0)
    held_for = 0
    while held_for < 3:
        maker._act()
        held_for = held_for + 1 if maker._env.is_grasped() else 0
    assert PlateExpert(maker._env).act()[6] == 0.0, "dropped"
    for _ in range(80):
        maker._act()
        if maker._finished():
            break
    fresh = PlateExpert(maker._env)
    for _ in range(10):
        maker._env.advance(fresh.act())
    assert fresh.finished and not maker._env.is_grasped()


def test_a_policy_drives_the_run_up(maker: EpisodeMaker) -> None:
    class Sideways:
        """A policy that always moves to one side, open."""

        spec = SimpleNamespace(cameras=(SimpleNamespace(name="front"),), state=None)

        def infer(self, observation: object) -> object:
            return SimpleNamespace(actions=np.tile([0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0], (8, 1)))

    maker._policy = Sideways()  # type: ignore[assignment]
    try:
        episode = maker.make(3)
    finally:
        maker._policy = None
    assert episode.notes[START_NOTE] == "policy"
    assert label(episode, "held")[-1] == 0.0 and label(episode, "held").any()


def test_an_episode_depends_on_its_number_alone(
    maker: EpisodeMaker, episodes: list[EpisodeRecord]
) -> None:
    again = maker.make(2)
    assert again.notes == episodes[2].notes
    for key, values in episodes[2].columns.items():
        np.testing.assert_array_equal(again.columns[key], values)
    np.testing.assert_array_equal(again.images[VIDEO_KEY], episodes[2].images[VIDEO_KEY])


def test_a_collection_goes_on_with_the_same_meshes(tmp_path: Path) -> None:
    collect(CLIPS, tmp_path, 1, progress=False)
    assert collect(CLIPS, tmp_path, 2, progress=False)["episodes"] == 2
    reader = LeRobotReader(tmp_path)
    assert reader.schema.features[VIDEO_KEY].shape == (120, 160, 3)
    larger = CollectSettings(env="put_on_plate", seed=3, size_px=(320, 240), record_frames=(2, 3))
    with pytest.raises(DataError, match=r"size_px=\[320, 240\]"):
        collect(larger, tmp_path, 3, progress=False)
