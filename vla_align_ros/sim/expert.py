"""The scripted demonstrator: looks at the simulator's truth and says what to do next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim.catalogue import OBJECTS
from vla_align_ros.sim.scene import RECEPTACLE_THICKNESS_M
from vla_align_ros.sim.tabletop import TabletopEnv

Array = NDArray[np.float64]

MAX_TRANSLATION_M = 0.04
MAX_ROTATION_RAD = 0.30
HOVER_M = 0.10
CARRY_Z_M = 0.12
RETREAT_Z_M = 0.13
ALIGNED_M = 0.008
ALIGNED_RAD = 0.12
ABOVE_RECEPTACLE_M = 0.015
OPEN = 1.0
CLOSED = 0.0


class Expert:
    """Pick and place as a function of the present state alone.

    It keeps no phase of its own, so it can take over from any state (after a kick, after another
    policy, after a change of the instruction) and its labels never depend on what came before.
    """

    def act(self, env: TabletopEnv) -> Array:
        """The next action (7,): metres, rotation vector in rad (base frame), gripper 0 or 1."""
        task = env.task
        held = env.held_object()
        if env.succeeded():
            return self._retreat(env)
        if held == task.object and env.gripper_open() < 0.95:
            return self._carry(env)
        if held is not None and env.gripper_open() < 0.9:
            return self._put_down(env, held)
        if self._rests_on_receptacle(env):
            return self._move(env, np.zeros(3), 0.0, OPEN)
        return self._reach(env)

    def _reach(self, env: TabletopEnv) -> Array:
        position, yaw = env.object_pose(env.task.object)
        grasp_z = max(float(position[2]) - 0.012, 0.008)
        offset = position - env.target_position
        distance = float(np.hypot(offset[0], offset[1]))
        turn = _half_turn(yaw - _yaw(env.target_rotation))
        in_place = distance < ALIGNED_M and abs(turn) < ALIGNED_RAD
        if in_place and env.target_position[2] - grasp_z < 0.008:
            return self._move(env, np.zeros(3), 0.0, CLOSED)
        # A cone above the object: the further away, sideways or in yaw, the higher.
        wanted_z = grasp_z + min(HOVER_M, 3.0 * max(distance - 0.006, 0.0) + 0.12 * abs(turn))
        return self._move(env, _climb_first(env, offset[:2], wanted_z), turn, OPEN)

    def _carry(self, env: TabletopEnv) -> Array:
        if env.gripper_speed() < -0.25:  # still closing: let the fingers settle
            return self._move(env, np.zeros(3), 0.0, CLOSED)
        position, _ = env.object_pose(env.task.object)
        centre = env.receptacle_position(env.task.receptacle)
        offset = (centre - position)[:2]
        distance = float(np.hypot(*offset))
        grip_above = float(env.target_position[2] - position[2])
        release_z = RECEPTACLE_THICKNESS_M + OBJECTS[env.task.object].radius_m + grip_above + 0.008
        if distance < ABOVE_RECEPTACLE_M and env.target_position[2] - release_z < 0.010:
            return self._move(env, np.zeros(3), 0.0, OPEN)
        wanted_z = min(CARRY_Z_M, release_z + 3.0 * max(distance - 0.010, 0.0))
        return self._move(env, _climb_first(env, offset, wanted_z), 0.0, CLOSED)

    def _put_down(self, env: TabletopEnv, held: str) -> Array:
        position, _ = env.object_pose(held)
        drop = float(position[2]) - OBJECTS[held].radius_m
        if drop < 0.012:
            return self._move(env, np.zeros(3), 0.0, OPEN)
        return self._move(env, np.array([0.0, 0.0, -drop]), 0.0, CLOSED)

    def _retreat(self, env: TabletopEnv) -> Array:
        rise = max(RETREAT_Z_M - float(env.target_position[2]), 0.0)
        return self._move(env, np.array([0.0, 0.0, rise]), 0.0, OPEN)

    @staticmethod
    def _rests_on_receptacle(env: TabletopEnv) -> bool:
        position, _ = env.object_pose(env.task.object)
        centre = env.receptacle_position(env.task.receptacle)
        near = float(np.hypot(*(position - centre)[:2])) < 0.045
        low = float(position[2]) < OBJECTS[env.task.object].radius_m + 0.025
        return near and low

    @staticmethod
    def _move(env: TabletopEnv, offset: Array, turn_rad: float, gripper: float) -> Array:
        length = float(np.linalg.norm(offset))
        step = offset * min(1.0, MAX_TRANSLATION_M / length) if length > 0.0 else offset
        turn = float(np.clip(turn_rad, -MAX_ROTATION_RAD, MAX_ROTATION_RAD))
        return np.array([*step, 0.0, 0.0, turn, gripper])


def _climb_first(env: TabletopEnv, sideways: Array, wanted_z: float) -> Array:
    """Offset (3,) to a point beside and at `wanted_z`, slower sideways while too low."""
    climb = wanted_z - float(env.target_position[2])
    slowing = float(np.clip(1.0 - (climb - 0.02) / 0.04, 0.0, 1.0))
    return np.array([*(sideways * slowing), climb])


def _yaw(rotation: Array) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _half_turn(angle: float) -> float:
    """An angle folded to (-pi/2, pi/2]: a gripper grasps alike from both sides."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
