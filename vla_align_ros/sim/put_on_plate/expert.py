"""The scripted demonstrator of the benchmark: grasps chosen from the mesh, and second attempts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.actions import rotvec_from_matrix
from vla_align_ros.sim.put_on_plate.environment import PutOnPlateEnv, yaw_from_matrix
from vla_align_ros.sim.put_on_plate.grasps import TIP_BELOW_TOOL_M, Grasp, rank_grasps
from vla_align_ros.sim.put_on_plate.world import TABLE_TOP_M

Array = NDArray[np.float64]
Phase = Literal["reach", "close", "carry", "release", "retreat"]

MAX_TRANSLATION_M, FAST_M = 0.04, 0.07  # fast only after what rolls away
MAX_ROTATION_RAD = 0.30
OVER_M = 0.025
CLOSE_STEPS, RELEASE_STEPS, LONGEST_RELEASE_STEPS, GONE_STEPS = 6, 3, 12, 6
WIDE_OPEN_M, SHAKE_RAD = 0.034, 0.2
TIPPED_RAD, NEAR_M = 0.12, 0.05
LAG_STEPS, ROLLING_M, JUMP_M = 2.0, 0.004, 0.03
TURN_COST_M = 0.015  # a radian
OPEN, CLOSED = 1.0, 0.0


class PlateExpert:
    """Puts the source on its target by what the simulator knows.

    One for each episode, or for each time that something else moved the arm: it begins with what
    the scene asks for, be it that the source is held or lies on its target already.
    """

    def __init__(self, env: PutOnPlateEnv) -> None:
        self._env = env
        held = env.is_grasped()
        self._phase: Phase = "carry" if held else "retreat" if env.succeeded() else "reach"
        self._steps = 0
        self._attempt = 0
        self._grasps: list[Grasp] = []
        self._planned_at: tuple[Array, Array] | None = None
        self._seen_at: Array | None = None
        self._hurry = False

    def act(self) -> Array:
        """The next action (7,): metres, rotation vector in rad (base frame), gripper 0 or 1."""
        self._steps += 1
        match self._phase:
            case "reach":
                return self._reach()
            case "close":
                return self._close()
            case "carry":
                return self._carry()
            case "release":
                return self._release()
            case "retreat":
                return self._retreat()

    @property
    def finished(self) -> bool:
        """Whether the source lies on its target and the gripper has gone up."""
        return self._phase == "retreat" and self._steps >= GONE_STEPS and self._env.succeeded()

    # -- phases -------------------------------------------------------------------------------
    def _reach(self) -> Array:
        if self._attempt and self._env.is_grasped():  # it jammed in the open gripper
            self._start("carry")
            return self._move(np.zeros(3), np.zeros(3), CLOSED)
        tip, heading = self._grasp()
        wanted = tip + _up(TIP_BELOW_TOOL_M)
        ahead = wanted + self._roll()
        position, rotation = self._env.tool_pose()
        turn = self._turn_to(heading)
        sideways = float(np.hypot(*(wanted - position)[:2]))
        upright = float(np.linalg.norm(rotvec_from_matrix(rotation.T @ self._upright(heading))))
        if sideways < 0.006 and upright < 0.10 and abs(position[2] - wanted[2]) < 0.006:
            self._start("close")
            return self._move(np.zeros(3), np.zeros(3), CLOSED)
        above = max(self._top_m() + OVER_M + TIP_BELOW_TOOL_M - wanted[2], 0.02)
        beside = sideways - (0.022 if self._hurry else 0.008)
        clear = float(np.clip(4.0 * beside + 0.15 * max(upright - 0.05, 0.0), 0.0, above))
        return self._move_to(ahead + _up(clear), turn, OPEN, low=wanted[2] + clear)

    def _close(self) -> Array:
        if self._steps >= 3 and self._env.is_grasped():
            self._start("carry")
        elif self._steps >= CLOSE_STEPS:
            self._try_again()
        return self._move(np.zeros(3), np.zeros(3), CLOSED)

    def _carry(self) -> Array:
        if not self._env.is_grasped() and self._steps > 1:
            self._try_again()
            return self._move(np.zeros(3), np.zeros(3), OPEN)
        corners = np.concatenate([part for part, _ in self._env.hulls(self._env.scene.source)])
        middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
        bottom = float(corners[:, 2].min())
        target = np.concatenate([part for part, _ in self._env.hulls(self._env.scene.target)])
        goal, rim = self._env.pose(self._env.scene.target)[0], float(target[:, 2].max())
        position, _ = self._env.tool_pose()
        offset = (goal - middle)[:2]
        sideways = float(np.hypot(*offset))
        release = rim + 0.004
        if sideways < 0.012 and bottom < release + 0.006:
            self._start("release")
            return self._move(np.zeros(3), np.zeros(3), OPEN)
        high = max(self._top_m(moving=False) + OVER_M - release, 0.02)
        clear = float(np.clip(4.0 * (sideways - 0.010), 0.0, high))
        wanted = position + np.array([*offset, release + clear - bottom])
        return self._move_to(wanted, np.zeros(3), CLOSED, low=float(wanted[2]))

    def _release(self) -> Array:
        jammed = self._env.is_grasped() and self._env.finger_m() > WIDE_OPEN_M
        if self._steps >= RELEASE_STEPS and not (jammed and self._steps < LONGEST_RELEASE_STEPS):
            self._start("retreat")
        shake = _up(SHAKE_RAD if self._steps % 4 < 2 else -SHAKE_RAD) if jammed else np.zeros(3)
        return self._move(np.zeros(3), shake, OPEN)

    def _retreat(self) -> Array:
        position, _ = self._env.tool_pose()
        high = TABLE_TOP_M + 0.14
        if self._steps >= GONE_STEPS and not self._env.succeeded():
            self._try_again()
        rise = max(high - float(position[2]), 0.0)
        return self._move_to(position + _up(rise), np.zeros(3), OPEN, low=0.0)

    # -- plans --------------------------------------------------------------------------------
    def _start(self, phase: Phase) -> None:
        self._phase, self._steps, self._hurry = phase, 0, False

    def _try_again(self) -> None:
        self._attempt += 1
        self._planned_at = None
        self._start("reach")

    def _grasp(self) -> tuple[Array, float]:
        """Tip (3,) and heading of the grasp in hand, which moves with the thing."""
        position, rotation = self._env.pose(self._env.scene.source)
        near = float(np.hypot(*(position - self._env.tool_pose()[0])[:2])) < NEAR_M
        tipped = self._planned_at and not near and _tilt(self._planned_at[1], rotation) > TIPPED_RAD
        if self._planned_at is None or tipped:
            ranked = rank_grasps(self._env.hulls(self._env.scene.source), TABLE_TOP_M)
            self._grasps = sorted(ranked, key=self._effort)
            self._planned_at = (position, rotation)
        chosen = self._grasps[min(7 * self._attempt, len(self._grasps) - 1)]
        start, then = self._planned_at
        yaw = yaw_from_matrix(rotation @ then.T)
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        offset = chosen.tip_m - start
        return position + np.r_[turn @ offset[:2], offset[2]], chosen.heading_rad + yaw

    def _effort(self, grasp: Grasp) -> float:
        """A grasp's cost with that of turning the gripper to it."""
        _, rotation = self._env.tool_pose()
        turn = grasp.heading_rad - np.arctan2(rotation[1, 1], rotation[0, 1])
        return grasp.cost_m + TURN_COST_M * float(abs((turn + np.pi / 2) % np.pi - np.pi / 2))

    def _roll(self) -> Array:
        """How far (3,) the source will have rolled by the time that the arm gets there."""
        position, _ = self._env.pose(self._env.scene.source)
        step = np.zeros(3) if self._seen_at is None else position - self._seen_at
        self._seen_at = position
        length = float(np.linalg.norm(step[:2]))
        self._hurry = ROLLING_M < length < JUMP_M
        ahead = np.array([*step[:2], 0.0]) if length < JUMP_M else np.zeros(3)
        return LAG_STEPS * ahead

    def _top_m(self, *, moving: bool = True) -> float:
        """Height of the highest thing, with or without the source."""
        things = self._env.scene.things[0 if moving else 1 :]
        return max(
            float(corners[:, 2].max()) for thing in things for corners, _ in self._env.hulls(thing)
        )

    # -- motion -------------------------------------------------------------------------------
    def _upright(self, heading: float) -> Array:
        """Rotation of a gripper that points down and closes along `heading`, nearest to now."""
        _, rotation = self._env.target_pose()
        closing = np.array([np.cos(heading), np.sin(heading), 0.0])
        if closing @ rotation[:, 1] < 0:
            closing = -closing
        down = np.array([0.0, 0.0, -1.0])
        return np.stack([down, closing, np.cross(down, closing)], axis=1)

    def _turn_to(self, heading: float) -> Array:
        """Rotation vector (3,) in the world that makes the target upright at `heading`."""
        _, rotation = self._env.target_pose()
        return rotvec_from_matrix(self._upright(heading) @ rotation.T)

    def _move_to(self, wanted: Array, turn: Array, gripper: float, *, low: float) -> Array:
        """Towards a point (3,) of the world; upwards first while below `low`."""
        target, _ = self._env.target_pose()
        offset = wanted - target
        position, _ = self._env.tool_pose()
        climb = low - float(min(position[2], target[2]))
        offset[:2] *= float(np.clip(1.0 - (climb - 0.02) / 0.03, 0.0, 1.0))
        return self._move(offset, turn, gripper)

    def _move(self, offset: Array, turn: Array, gripper: float) -> Array:
        back = self._env.base_pose()[1].T
        action = np.zeros(7)
        action[:3] = back @ _shorten(offset, FAST_M if self._hurry else MAX_TRANSLATION_M)
        action[3:6] = back @ _shorten(turn, MAX_ROTATION_RAD)
        action[6] = gripper
        return action


def _shorten(vector: Array, longest: float) -> Array:
    length = float(np.linalg.norm(vector))
    shortened: Array = vector * (longest / length) if length > longest else vector
    return shortened


def _up(height_m: float) -> Array:
    return np.array([0.0, 0.0, height_m])


def _tilt(before: Array, after: Array) -> float:
    """Angle between the vertical before and after, in the thing's frame."""
    return float(np.arccos(np.clip(before[2] @ after[2], -1.0, 1.0)))
