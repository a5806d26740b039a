"""The simulated table-top: deterministic, fast enough, honest about what it shows and judges."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim.labels import ENVIRONMENT_STATE_NAMES, environment_state
from vla_align_ros.sim.layout import Task
from vla_align_ros.sim.tabletop import (
    CONTROL_HZ,
    STATE_NAMES,
    TICKS_PER_STEP,
    TabletopEnv,
    tabletop_spec,
)

STILL_OPEN = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
_DIGEST = """
import hashlib, numpy as np
from vla_align_ros.sim.tabletop import TabletopEnv
env = TabletopEnv(render_size=64)
digest = hashlib.sha256(env.reset(5, shift="overlay_03").image.tobytes())
for _ in range(3):
    seen = env.step(np.array([0.02, -0.01, -0.02, 0.0, 0.0, 0.1, 0.0]))
    digest.update(seen.image.tobytes() + seen.state.tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def env() -> TabletopEnv:
    return TabletopEnv(render_size=64)


def test_the_same_seed_gives_identical_pictures_in_two_processes() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST], check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_a_reset_leaves_nothing_of_the_episode_before(env: TabletopEnv) -> None:
    fresh = env.reset(3)
    env.reset(4, shift="distractors")
    env.step(np.array([0.03, 0.0, -0.03, 0.0, 0.0, 0.2, 0.0]))
    again = env.reset(3)
    assert np.array_equal(fresh.image, again.image)
    assert np.array_equal(fresh.state, again.state)


def test_different_seeds_give_different_scenes(env: TabletopEnv) -> None:
    assert not np.array_equal(env.reset(1).image, env.reset(2).image)


def test_a_delta_action_moves_the_tool_by_that_many_metres_and_radians(env: TabletopEnv) -> None:
    env.reset(0)
    before = env.state()
    action = np.array([0.02, 0.015, 0.01, 0.0, 0.0, 0.2, 1.0])
    env.step(action)
    for _ in range(2):  # let the joint controllers arrive
        env.step(STILL_OPEN)
    moved = env.state() - before
    assert moved[:3] == pytest.approx(action[:3], abs=0.004)
    assert moved[5] == pytest.approx(0.2, abs=0.03)
    assert np.abs(moved[3:5]).max() < 0.03


def test_ticks_at_constant_velocity_equal_one_step(env: TabletopEnv) -> None:
    action = np.array([0.02, -0.01, -0.03, 0.0, 0.0, -0.1, 0.0])
    env.reset(7)
    stepped = env.step(action)
    env.reset(7)
    for _ in range(TICKS_PER_STEP):
        env.tick(action[:6] * CONTROL_HZ, float(action[6]))
    assert np.array_equal(stepped.image, env.observe().image)
    assert np.array_equal(stepped.state, env.state())


def test_restore_returns_to_the_saved_moment(env: TabletopEnv) -> None:
    env.reset(9)
    env.step(np.array([0.02, 0.0, -0.02, 0.0, 0.0, 0.0, 1.0]))
    saved = env.save()
    first = env.step(np.array([0.03, 0.02, -0.02, 0.0, 0.0, 0.2, 0.0]))
    env.restore(saved)
    again = env.step(np.array([0.03, 0.02, -0.02, 0.0, 0.0, 0.2, 0.0]))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.state, again.state)


def test_the_scene_holds_two_named_objects_and_two_receptacles(env: TabletopEnv) -> None:
    for seed in range(20):
        env.reset(seed)
        assert len({task.object for task in env.tasks}) == 2
        assert len({task.receptacle for task in env.tasks}) == 2
        assert env.task in env.tasks


def test_labels_point_at_the_object_in_the_picture(env: TabletopEnv) -> None:
    orange = TabletopEnv(render_size=224)
    names = list(ENVIRONMENT_STATE_NAMES)
    checked = 0
    for seed in range(40):
        picture = orange.reset(seed).image
        if orange.task.object != "carrot":
            continue
        label = environment_state(orange)
        column, row = (label[names.index(n)] * 224 for n in ("object_u", "object_v"))
        patch = picture[int(row) - 3 : int(row) + 4, int(column) - 3 : int(column) + 4]
        red, green, blue = patch.reshape(-1, 3).astype(float).mean(0)
        checked += red > 1.4 * green and green > blue
    assert checked >= 4
    orange.close()


def test_a_task_of_absent_things_is_refused(env: TabletopEnv) -> None:
    env.reset(0)
    with pytest.raises(SimulationError, match="Not in this scene"):
        env.set_task(Task("potato", "plate"))


def test_an_untouched_scene_is_no_success(env: TabletopEnv) -> None:
    for seed in range(10):
        env.reset(seed)
        assert not any(env.succeeded(task) for task in env.tasks)


def test_a_call_before_reset_says_so() -> None:
    with pytest.raises(SimulationError, match="No episode yet"):
        _ = TabletopEnv(render=False).task


def test_a_bad_picture_size_is_refused() -> None:
    with pytest.raises(SimulationError, match="picture size"):
        TabletopEnv(render_size=4000)


def test_the_state_and_labels_have_their_declared_lengths(env: TabletopEnv) -> None:
    seen = env.reset(0)
    assert seen.state.shape == (len(STATE_NAMES),) and seen.state.dtype == np.float32
    assert environment_state(env).shape == (len(ENVIRONMENT_STATE_NAMES),)
    assert tabletop_spec().state.names == STATE_NAMES


def test_an_object_moves_once_under_the_moved_object_shift(env: TabletopEnv) -> None:
    env.reset(2, shift="object_moved")
    name = env.layout.task.object
    before = env.object_pose(name)[0]
    for _ in range(4):
        env.advance(STILL_OPEN)
    assert np.linalg.norm(env.object_pose(name)[0] - before) < 0.005
    for _ in range(4):
        env.advance(STILL_OPEN)
    assert np.linalg.norm(env.object_pose(name)[0] - before) == pytest.approx(0.06, abs=0.015)


@pytest.mark.parametrize("seed", [1051, 1065, 10021])
def test_a_jump_is_no_success_of_an_arm_that_stands_still(env: TabletopEnv, seed: int) -> None:
    env.reset(seed, shift="object_moved")
    for _ in range(8):
        env.advance(STILL_OPEN)
        assert not env.succeeded()
