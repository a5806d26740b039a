"""The benchmark in the simulator: deterministic, as published, mastered by the expert."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from plate_assets import NO_ASSETS, NO_SIMULATOR, can_simulate, real_assets

if not can_simulate():
    pytest.skip(NO_SIMULATOR, allow_module_level=True)
if real_assets() is None:
    pytest.skip(NO_ASSETS, allow_module_level=True)

from vla_align_ros.contract.actions import matrix_from_rotvec
from vla_align_ros.errors import SimulationError
from vla_align_ros.sim.put_on_plate.environment import PutOnPlateEnv, euler_from_matrix
from vla_align_ros.sim.put_on_plate.expert import FAST_M, MAX_ROTATION_RAD, PlateExpert

pytestmark = pytest.mark.filterwarnings("ignore")  # the simulator's own, about itself
STILL_OPEN = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
SIZE_PX = (160, 120)
_DIGEST = """
import hashlib, numpy as np
from vla_align_ros.sim.put_on_plate.environment import PutOnPlateEnv
env = PutOnPlateEnv(size_px=(160, 120))
env.begin(5, environment="VisionTexture03")
for _ in range(3):
    env.advance(np.array([0.02, -0.01, -0.02, 0.0, 0.0, 0.1, 0.0]))
print(hashlib.sha256(env.observe().image.tobytes() + env.state().tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def env() -> Iterator[PutOnPlateEnv]:
    made = PutOnPlateEnv(size_px=SIZE_PX)
    yield made
    made.close()


def fly(env: PutOnPlateEnv, steps: int = 80) -> PlateExpert:
    expert = PlateExpert(env)
    for _ in range(steps):
        env.advance(expert.act())
        if expert.finished:
            break
    return expert


def test_a_seed_is_the_same_episode_in_another_process_and_after_others(
    env: PutOnPlateEnv,
) -> None:
    env.begin(8, environment="Plate")
    env.begin(5, environment="VisionTexture03")
    for _ in range(3):
        env.advance(np.array([0.02, -0.01, -0.02, 0.0, 0.0, 0.1, 0.0]))
    seen = env.observe()
    assert seen.image is not None
    here = hashlib.sha256(seen.image.tobytes() + env.state().tobytes()).hexdigest()
    answer = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True)
    assert answer.stdout.split()[-1:] == [here], answer.stderr


def test_an_action_moves_the_tool_along_the_base_frame(env: PutOnPlateEnv) -> None:
    env.begin(0, environment="Main")
    before = env.state()
    for _ in range(4):
        env.advance(np.array([0.01, 0.015, 0.005, 0.0, 0.0, 0.05, 1.0]))
    for _ in range(6):
        env.advance(STILL_OPEN)
    after = env.state()
    np.testing.assert_allclose(after[:3] - before[:3], [0.04, 0.06, 0.02], atol=0.003)
    assert after[5] - before[5] == pytest.approx(0.2, abs=0.02)
    assert after[6] == pytest.approx(1.0, abs=0.05)


def test_a_rotation_vector_is_what_the_controller_makes_of_its_angles() -> None:
    from mani_skill.utils.geometry.rotation_conversions import euler_angles_to_matrix
    from torch import as_tensor

    for rotvec in np.random.default_rng(0).normal(0.0, 0.4, (20, 3)):
        matrix = matrix_from_rotvec(rotvec)
        theirs = euler_angles_to_matrix(as_tensor(euler_from_matrix(matrix)), "XYZ")
        np.testing.assert_allclose(theirs.numpy(), matrix, atol=1e-9)


def test_the_object_jumps_after_five_steps_where_it_should(env: PutOnPlateEnv) -> None:
    env.begin(3, environment="PositionChangeTo")
    places = []
    for _ in range(7):
        env.advance(STILL_OPEN)
        places.append(env.pose(env.scene.source)[0][:2])
    jumps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert int(jumps.argmax()) == 3 and jumps.max() > 0.12
    assert env.scene.moved_to_m is not None
    np.testing.assert_allclose(places[4], env.scene.moved_to_m[:2], atol=0.03)


@pytest.mark.parametrize("name", ["Carrot", "MultiPlate", "EEPose", "PositionChangeTo", "Parity"])
def test_the_expert_puts_it_there(env: PutOnPlateEnv, name: str) -> None:
    succeeded = 0
    for seed in range(1000, 1003):
        env.begin(seed, environment=name)
        fly(env)
        succeeded += env.succeeded_once and env.succeeded() and env.grasped_once
    assert succeeded >= 2


def test_doing_nothing_succeeds_nowhere(env: PutOnPlateEnv) -> None:
    for name in ("Main", "Color"):
        env.begin(1, environment=name)
        for _ in range(10):
            env.advance(STILL_OPEN)
        assert not env.succeeded_once and not env.grasped_once


def test_the_experts_actions_stay_within_their_limits(env: PutOnPlateEnv) -> None:
    env.begin(2, environment="EEPose")
    expert = PlateExpert(env)
    for _ in range(40):
        action = expert.act()
        assert np.linalg.norm(action[:3]) <= FAST_M + 1e-9
        assert np.linalg.norm(action[3:6]) <= MAX_ROTATION_RAD + 1e-9
        assert action[6] in (0.0, 1.0)
        env.advance(action)


def test_pictures_have_the_size_asked_for_and_show_the_blend(env: PutOnPlateEnv) -> None:
    images: dict[str, Any] = {}
    for name in ("Main", "VisionWhole05"):
        env.begin(4, environment=name)
        images[name] = env.observe().image
        assert images[name].shape == (SIZE_PX[1], SIZE_PX[0], 3)
        assert images[name].dtype == np.uint8
    with pytest.raises(SimulationError, match="picture size"):
        PutOnPlateEnv(size_px=(300, 300))


def test_before_an_episode_nothing_is_known() -> None:
    made = PutOnPlateEnv(size_px=SIZE_PX)
    with pytest.raises(SimulationError, match="No episode yet"):
        _ = made.scene
    made.close()
