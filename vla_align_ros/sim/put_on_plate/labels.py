"""The simulator's truth as a vector beside each frame: labels for training, never for a robot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim.put_on_plate.environment import PutOnPlateEnv, yaw_from_matrix
from vla_align_ros.sim.put_on_plate.layout import Thing


def environment_state(env: PutOnPlateEnv) -> NDArray[np.float32]:
    """Labels of the scene (11,) float32, as `environments.ENVIRONMENT_STATE_NAMES`.

    Metres and radians in the robot's base frame; u, v are fractions of the picture's width and
    height.
    """
    place, turn, *point = _locate(env, env.scene.source)
    centre, _, *target = _locate(env, env.scene.target)
    return np.array(
        [*place, yaw_from_matrix(turn), *point, *centre[:2], *target, float(env.is_grasped())],
        dtype=np.float32,
    )


def _locate(
    env: PutOnPlateEnv, thing: Thing
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
    """Position and rotation in the base frame, and where the picture shows it."""
    position, rotation = env.pose(thing)
    base, turn = env.base_pose()
    return (turn.T @ (position - base), turn.T @ rotation, *env.project(position))
