"""The scripted expert succeeds, whatever state it is handed, and keeps no memory."""

from __future__ import annotations

import numpy as np
import pytest

from vla_align_ros.sim.expert import MAX_ROTATION_RAD, MAX_TRANSLATION_M, Expert
from vla_align_ros.sim.shifts import SHIFTS
from vla_align_ros.sim.tabletop import TabletopEnv

MAX_STEPS = 80


@pytest.fixture(scope="module")
def env() -> TabletopEnv:
    return TabletopEnv(render=False)


def run_to_end(env: TabletopEnv, expert: Expert) -> bool:
    for _ in range(MAX_STEPS):
        env.advance(expert.act(env))
        if env.succeeded():
            return True
    return False


def test_at_least_95_of_100_episodes_succeed(env: TabletopEnv) -> None:
    expert = Expert()
    failed = []
    for seed in range(100):
        env.begin(seed)
        if not run_to_end(env, expert):
            failed.append(seed)
    assert len(failed) <= 5, f"failed seeds: {failed}"


@pytest.mark.parametrize("shift", [name for name in SHIFTS if name != "none"])
def test_the_expert_masters_every_shift(env: TabletopEnv, shift: str) -> None:
    successes = 0
    for seed in range(10):
        env.begin(seed, shift=shift)
        successes += run_to_end(env, Expert())
    assert successes >= 9


def test_actions_stay_within_their_limits(env: TabletopEnv) -> None:
    expert = Expert()
    for seed in range(5):
        env.begin(seed)
        for _ in range(25):
            action = expert.act(env)
            assert np.linalg.norm(action[:3]) <= MAX_TRANSLATION_M + 1e-9
            assert np.abs(action[3:6]).max() <= MAX_ROTATION_RAD + 1e-9
            assert action[6] in (0.0, 1.0)
            env.advance(action)


def test_a_new_instruction_in_mid_episode_is_followed(env: TabletopEnv) -> None:
    successes = 0
    for seed in range(10):
        env.begin(seed)
        expert = Expert()
        for _ in range(10):  # by now the first object is in the gripper or nearly so
            env.advance(expert.act(env))
        other = next(task for task in env.tasks if task.object != env.task.object)
        env.set_task(other)
        successes += run_to_end(env, expert)
    assert successes >= 8


def test_the_action_depends_on_the_present_state_alone(env: TabletopEnv) -> None:
    used = Expert()
    env.begin(1)
    for _ in range(12):
        env.advance(used.act(env))
    assert np.array_equal(used.act(env), Expert().act(env))
