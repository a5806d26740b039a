"""Collecting from the simulator: clean labels, the same data however it was made or interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sample_policy import make_bundle

from training.commands.collect import parse_range
from training.data.collect import collect, make_episodes, schema_of
from training.data.collect_settings import CollectSettings
from training.data.layout import EpisodeRecord, episodes_path
from training.data.reader import LeRobotReader
from training.data.rollout import MAX_STEPS, EpisodeMaker, open_maker
from training.data.schema import (
    ACTION_KEY,
    ATTEMPT_NOTE,
    CHUNK_KEY,
    ENVIRONMENT_KEY,
    SEED_NOTE,
    START_NOTE,
    STATE_KEY,
    VIDEO_KEY,
)
from training.data.tabletop_rollout import TabletopMaker
from vla_align_ros.cli import main
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.spec import StateSpec
from vla_align_ros.errors import ConfigurationError, DataError, SimulationError, VlaAlignError

CLIPS = CollectSettings(seed=3, record_frames=(1, 3))


@pytest.fixture(scope="module")
def maker() -> Iterator[EpisodeMaker]:
    made = open_maker(CollectSettings(seed=11))
    yield made
    made.close()


@pytest.fixture(scope="module")
def episodes(maker: EpisodeMaker) -> list[EpisodeRecord]:
    return [maker.make(number) for number in range(12)]


def test_chunks_are_the_actions_that_follow(episodes: list[EpisodeRecord]) -> None:
    for episode in episodes:
        action, chunk = episode.columns[ACTION_KEY], episode.columns[CHUNK_KEY]
        assert chunk.shape == (len(episode), 8, 7) and len(episode) <= MAX_STEPS
        for ahead in range(8):
            steps = max(len(episode) - ahead, 0)
            np.testing.assert_array_equal(chunk[:steps, ahead], action[ahead : ahead + steps])
        assert np.isfinite(chunk).all()


class AtALoss(TabletopMaker):
    """Its expert cannot go on in the first scene that it meets."""

    gives_up = (SimulationError,)
    met = 0

    def _expert_action(self) -> np.ndarray:
        self.met += 1
        if self.met == 1:
            raise SimulationError("Nothing to grasp", got="a can on its side")
        return super()._expert_action()


def test_a_scene_in_which_the_expert_is_at_a_loss_is_replaced_by_the_next_draw() -> None:
    made = AtALoss(CLIPS)
    try:
        record = made.make(0)
    finally:
        made.close()
    assert record.notes[ATTEMPT_NOTE] == 1 and len(record) >= 1


def test_episodes_end_with_the_object_let_go_on_its_receptacle(
    episodes: list[EpisodeRecord], maker: EpisodeMaker
) -> None:
    from vla_align_ros.sim.labels import ENVIRONMENT_STATE_NAMES as NAMES

    def label(episode: EpisodeRecord, name: str) -> float:
        return float(episode.columns[ENVIRONMENT_KEY][-1, NAMES.index(name)])

    for episode in episodes:
        gap = np.hypot(
            label(episode, "object_x") - label(episode, "receptacle_x"),
            label(episode, "object_y") - label(episode, "receptacle_y"),
        )
        assert gap < 0.06 and label(episode, "held") == 0.0
        assert episode.columns[STATE_KEY][-1, 6] > 0.5


def test_the_run_ups_are_varied_and_not_recorded(episodes: list[EpisodeRecord]) -> None:
    starts = {str(episode.notes[START_NOTE]) for episode in episodes}
    assert starts <= set(TabletopMaker.start_shares) and len(starts) >= 3
    first = np.stack([episode.columns[STATE_KEY][0, :3] for episode in episodes])
    assert np.ptp(first, axis=0).max() > 0.08
    for episode in episodes:
        largest = np.abs(episode.columns[CHUNK_KEY][..., :3]).max()
        assert largest <= 0.041  # the expert's own steps; a kick moves 3 cm and more in two steps


def test_an_episode_depends_on_its_number_alone(
    maker: EpisodeMaker, episodes: list[EpisodeRecord]
) -> None:
    again = maker.make(5)
    for key, values in episodes[5].columns.items():
        np.testing.assert_array_equal(again.columns[key], values)
    np.testing.assert_array_equal(again.images[VIDEO_KEY], episodes[5].images[VIDEO_KEY])
    assert len({episode.notes[SEED_NOTE] for episode in episodes}) == len(episodes)
    assert min(int(episode.notes[SEED_NOTE]) for episode in episodes) >= 2**31


def test_processes_make_the_same_episodes_in_order() -> None:
    alone = list(make_episodes(CLIPS, range(4), jobs=1))
    shared = list(make_episodes(CLIPS, range(4), jobs=2))
    for one, other in zip(alone, shared, strict=True):
        assert one.task == other.task and one.notes == other.notes
        for key, values in one.columns.items():
            np.testing.assert_array_equal(other.columns[key], values)
        np.testing.assert_array_equal(other.images[VIDEO_KEY], one.images[VIDEO_KEY])


def run_collect(out: Path) -> list[str]:
    code = "import sys; from vla_align_ros.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--episodes", "8", "--seed", "3", "--record-frames", "1:3"]
    return [
        *(sys.executable, "-c", code, "collect", "--env", "tabletop", "--out", str(out)),
        *(*options, "--episodes-per-file", "2", "--json"),
    ]


def test_a_killed_collection_continues_to_the_same_data(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    collect(CLIPS, whole, 8, episodes_per_file=2, progress=False)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        run_collect(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline_s = time.monotonic() + 120
    while not episodes_path(killed, 1).exists() and time.monotonic() < deadline_s:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(run_collect(killed), capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["episodes"] == 8
    readers = LeRobotReader(killed), LeRobotReader(whole)
    assert readers[0].episodes.to_pylist() == readers[1].episodes.to_pylist()
    assert readers[0].stats == readers[1].stats
    tables = readers[0].columns(), readers[1].columns()
    for key, values in tables[1].items():
        np.testing.assert_array_equal(tables[0][key], values)


def test_another_setting_does_not_continue_a_dataset(tmp_path: Path) -> None:
    collect(CLIPS, tmp_path, 1, progress=False)
    other = CollectSettings(seed=4, record_frames=(1, 3))
    with pytest.raises(DataError, match="got seed=4; expected seed=3"):
        collect(other, tmp_path, 2, progress=False)
    assert collect(CLIPS, tmp_path, 1, progress=False)["episodes"] == 1


def test_what_is_finished_is_kept_when_the_expert_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = EpisodeMaker.make

    def break_at_two(self: EpisodeMaker, number: int) -> EpisodeRecord:
        if number == 2:
            raise KeyboardInterrupt
        return made(self, number)

    monkeypatch.setattr(EpisodeMaker, "make", break_at_two)
    with pytest.raises(KeyboardInterrupt):
        collect(CLIPS, tmp_path, 5, progress=False)
    assert LeRobotReader(tmp_path).episodes.num_rows == 2


def test_failing_scenes_are_replaced_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_maker(CollectSettings(seed=3))
    record = EpisodeMaker._record
    calls: list[object] = []

    def fail_twice(self: EpisodeMaker, rng: object, notes: object) -> EpisodeRecord | None:
        calls.append(notes)
        return None if len(calls) <= 2 else record(self, rng, notes)  # type: ignore[arg-type]

    monkeypatch.setattr(EpisodeMaker, "_record", fail_twice)
    assert made.make(0).notes["collect/attempt"] == 2
    monkeypatch.setattr(EpisodeMaker, "_record", lambda self, rng, notes: None)
    with pytest.raises(DataError, match="failed 25 times in a row"):
        made.make(0)
    made.close()


def test_a_policy_drives_the_run_up_and_the_expert_is_recorded(maker: EpisodeMaker) -> None:
    seen: list[object] = []

    class Sideways:
        """A policy that always moves to the left, closed."""

        spec = SimpleNamespace(cameras=(SimpleNamespace(name="front"),), state=object())

        def infer(self, observation: object) -> object:
            seen.append(observation)
            return SimpleNamespace(actions=np.tile([0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0], (8, 1)))

    made = open_maker(CollectSettings(seed=11))
    made._policy = Sideways()  # type: ignore[assignment]
    episode = made.make(0)
    made.close()
    assert episode.notes[START_NOTE] == "policy"
    assert seen[0].instruction == episode.task  # type: ignore[attr-defined]
    assert episode.columns[STATE_KEY][0, 1] > 0.05  # it was driven to the left
    assert (np.abs(episode.columns[ACTION_KEY][:, 1] - 0.02) > 1e-6).any()


def test_dagger_runs_a_real_bundle_and_holds_on_to_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bundle, other = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", noise=0.5)
    settings = CollectSettings(seed=3, record_frames=(1, 2), policy=str(tmp_path / "a/bundle"))
    out = tmp_path / "data"
    assert collect(settings, out, 2, progress=False)["starts"] == {"policy": 2}
    assert json.loads((out / "meta/collection.json").read_text())["policy"] == bundle.id
    (tmp_path / "a/bundle").rename(tmp_path / "moved")
    moved = CollectSettings(seed=3, record_frames=(1, 2), policy=str(tmp_path / "moved"))
    assert collect(moved, out, 2, progress=False)["episodes"] == 2
    changed = CollectSettings(seed=3, record_frames=(1, 2), policy=str(tmp_path / "b/bundle"))
    with pytest.raises(DataError, match=f"policy={other.id}"):
        collect(changed, out, 3, progress=False)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda spec: replace(spec, action=replace(spec.action, rate_hz=15.0)), "15 Hz"),
        (lambda spec: replace(spec, state=StateSpec(tuple("abcdefg"))), "another state"),
    ],
)
def test_a_policy_of_another_rig_does_not_drive_the_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, got: str
) -> None:
    bundle = make_bundle(tmp_path)
    other = SimpleNamespace(spec=change(bundle.spec), id=bundle.id)
    monkeypatch.setattr(Bundle, "open", lambda *_, **__: other)
    settings = CollectSettings(seed=3, record_frames=(1, 2), policy=str(bundle.path))
    with pytest.raises(ConfigurationError, match=f"does not fit tabletop.*: got {got}; "):
        collect(settings, tmp_path / "data", 1, progress=False)
    assert not (tmp_path / "data").exists()


def test_bad_settings_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one of tabletop"):
        open_maker(CollectSettings(env="moon"))
    for env in ("tabletop", "put_on_plate"):
        with pytest.raises(DataError, match="got --seed -1; expected 0 or more"):
            collect(CollectSettings(env=env, seed=-1), tmp_path, 1, jobs=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(VlaAlignError, match="moonlight"):
        open_maker(CollectSettings(shift="moonlight"))
    with pytest.raises(DataError, match="Nothing to collect"):
        collect(CLIPS, tmp_path, 0)
    with pytest.raises(DataError, match="--size with --env put_on_plate only"):
        collect(CollectSettings(size_px=(320, 240)), tmp_path, 1)
    with pytest.raises(DataError, match="--render with --env put_on_plate only"):
        collect(CollectSettings(render_backend="gpu"), tmp_path, 1)
    with pytest.raises(DataError, match="training distribution"):
        collect(CollectSettings(env="put_on_plate", shift="dim_light"), tmp_path, 1)
    with pytest.raises(VlaAlignError, match="take 320x240"):
        collect(CollectSettings(env="put_on_plate", size_px=(300, 300)), tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no such renderer")
    with pytest.raises(DataError, match="--jobs 1 to see why"):
        list(make_episodes(CLIPS, range(2), jobs=2))


def test_the_schema_of_the_benchmark_has_its_size_and_labels() -> None:
    """Needs neither the simulator nor the meshes."""
    settings = CollectSettings(env="put_on_plate", size_px=(320, 240))
    features = schema_of(settings).features
    assert features[VIDEO_KEY].shape == (240, 320, 3)
    assert {"object_u", "object_v", "receptacle_u", "receptacle_v"} <= set(
        features[ENVIRONMENT_KEY].names or ()
    )
    assert schema_of(CollectSettings(env="put_on_plate")).features[VIDEO_KEY].shape[0] == 480


def test_a_collection_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """Settings that came later are absent from its file, and at their defaults here."""
    collect(CLIPS, tmp_path, 1, progress=False)
    path = tmp_path / "meta/collection.json"
    values = json.loads(path.read_text())
    assert values.pop("size_px") is None and "render_backend" not in values
    assert CollectSettings(render_backend="gpu").to_dict()["render_backend"] == "gpu"
    path.write_text(json.dumps(values))
    assert collect(CLIPS, tmp_path, 2, progress=False)["episodes"] == 2


@pytest.mark.parametrize("text", ["0", "3:2", "a", "1:b", ":", "-1:4"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="record-frames"):
        parse_range(text)


def test_ranges_are_read() -> None:
    assert (parse_range(None), parse_range("4"), parse_range("2:6")) == (None, (4, 4), (2, 6))


def test_info_describes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect(CLIPS, tmp_path, 2, progress=False)
    assert main(["data", "info", str(tmp_path), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["episodes"] == 2 and result["fps"] == 5
    assert sum(result["task_episodes"].values()) == 2
    assert result["features"][CHUNK_KEY]["shape"] == [8, 7]
    assert any("observation.images.front" in line for line in lines[:-1])
    assert main(["data", "info", str(tmp_path / "nowhere")]) == 1
    assert "Cannot read" in capsys.readouterr().err
