"""The benchmark's robot with the table-top's interface: begin, observe, advance, judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_align_ros.contract.actions import matrix_from_rotvec, rpy_from_matrix
from vla_align_ros.errors import SimulationError
from vla_align_ros.sim.put_on_plate import pictures
from vla_align_ros.sim.put_on_plate.assets import read_assets
from vla_align_ros.sim.put_on_plate.environments import (
    CONTROL_HZ,
    FULL_SIZE_PX,
    MOVE_AT_STEP,
    check_size,
    find_environment,
)
from vla_align_ros.sim.put_on_plate.grasps import Hull
from vla_align_ros.sim.put_on_plate.judge import is_on, world_size_m
from vla_align_ros.sim.put_on_plate.layout import Scene, Thing, build_scene, draw_number
from vla_align_ros.sim.put_on_plate.world import PlateWorld
from vla_align_ros.sim.robot import SITE_FROM_TOOL, SimObservation

Array = NDArray[np.float64]

CAMERA = "3rd_view_camera"
FRAME = "base_link"
FINGER_CLOSED_M, FINGER_OPEN_M = 0.015, 0.037


class PutOnPlateEnv:
    """A WidowX 250 S before a photographed table. Deterministic by environment and seed.

    Args:
        folder: of the assets; None reads the variable VLA_ALIGN_ASSETS.
        size_px: width and height of the picture, 4:3; as published 640 x 480.
        render_backend: "cpu" draws by software, "gpu" on a GPU; the physics run on the CPU.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        size_px: tuple[int, int] = FULL_SIZE_PX,
        render_backend: str = "cpu",
    ) -> None:
        width, height = check_size(size_px)
        self.assets = read_assets(folder)
        self._size_px = size_px
        self._world = PlateWorld(self.assets.root, width, height, render_backend)
        self._scene: Scene | None = None
        self.steps = 0
        self.grasped_once = False
        self.succeeded_once = False

    # -- an episode ---------------------------------------------------------------------------
    def begin(self, seed: int, *, environment: str) -> None:
        """Start the episode of `seed` in the named environment."""
        env = find_environment(environment)
        self.begin_scene(build_scene(env, self.assets, draw_number(env, self.assets, seed)))

    def begin_scene(self, scene: Scene) -> None:
        """Start an episode in a given scene."""
        self._scene = scene
        self._world.load(scene, seed=0)
        self._sizes = [
            world_size_m(thing.model.size_m, self._world.pose(thing.model.key)[1])
            for thing in (scene.source, scene.target)
        ]
        self.steps = 0
        self.grasped_once = self.succeeded_once = False

    @property
    def scene(self) -> Scene:
        """The current episode's scene; SimulationError before the first `begin`."""
        if self._scene is None:
            raise SimulationError(
                "No episode yet", got="a call before begin", expected="begin(seed)", fix="begin"
            )
        return self._scene

    def advance(self, action: ArrayLike) -> None:
        """One 5 Hz step of a delta action (7,): metres, rotation vector in rad, gripper 0..1."""
        delta = np.asarray(action, float)
        angles = euler_from_matrix(matrix_from_rotvec(delta[3:6]))
        self._world.advance(np.r_[delta[:3], angles, 1.0 if delta[6] > 0.5 else -1.0])
        self.steps += 1
        if self.scene.moved_to_m is not None and self.steps == MOVE_AT_STEP:
            self._world.move(self.scene.source, self.scene.moved_to_m)
        self.grasped_once |= self.is_grasped()
        self.succeeded_once |= self.succeeded()

    # -- senses -------------------------------------------------------------------------------
    def observe(self) -> SimObservation:
        """Picture and proprioception of now."""
        return SimObservation(self.render(), self.state(), self.steps / CONTROL_HZ)

    def state(self) -> NDArray[np.float32]:
        """Proprioception (7,) float32, as `robot.STATE_NAMES`, in the robot's base frame."""
        position, rotation = self._world.tool_pose()
        base, turn = self._world.base_pose()
        opening = (self._world.finger_m() - FINGER_CLOSED_M) / (FINGER_OPEN_M - FINGER_CLOSED_M)
        return np.array(
            [
                *(turn.T @ (position - base)),
                *rpy_from_matrix(turn.T @ rotation @ SITE_FROM_TOOL.T),
                np.clip(opening, 0.0, 1.0),
            ],
            dtype=np.float32,
        )

    def render(self) -> NDArray[np.uint8]:
        """The camera's picture (H, W, 3) uint8 RGB, over the photographed table."""
        picture, foreground = self._world.look()
        scene, (width, height) = self.scene, self._size_px
        table = pictures.read_picture(self.assets.tables[scene.table].picture, width, height)
        blend = scene.environment.blend
        if blend == "none" or scene.texture is None:
            return pictures.put_behind(picture, foreground, table)
        chosen = self.assets.tables[scene.texture]
        mix = chosen.mix * scene.environment.mix
        if blend == "foreground":
            texture = pictures.read_picture(chosen.texture, width, height)
            return pictures.blend_foreground(picture, foreground, table, texture, mix)
        texture = pictures.read_picture(chosen.texture, 2 * width, 2 * height)
        return pictures.blend_whole(picture, foreground, table, texture, mix)

    # -- truth (for the expert and the judge) -------------------------------------------------
    def succeeded(self) -> bool:
        """Whether the source lies on its target now, as published."""
        source, target = self.scene.source.model.key, self.scene.target.model.key
        return is_on(
            self._world.pose(source)[0],
            self._world.pose(target)[0],
            self._sizes[0],
            self._sizes[1],
            self._world.contact_n(source, target),
        )

    def is_grasped(self) -> bool:
        """Whether both fingers press on the source."""
        return self._world.is_grasped(self.scene.source.model.key)

    def pose(self, thing: Thing) -> tuple[Array, Array]:
        """True position (3,) and rotation (3, 3) of a thing, world frame."""
        return self._world.pose(thing.model.key)

    def hulls(self, thing: Thing) -> list[Hull]:
        """Convex parts of a thing where it is now, world frame."""
        position, rotation = self.pose(thing)
        return [
            (corners @ rotation.T + position, triangles)
            for corners, triangles in self._world.hulls(thing.model.key)
        ]

    def tool_pose(self) -> tuple[Array, Array]:
        """Measured position (3,) and rotation (3, 3) of the gripper link, world frame."""
        return self._world.tool_pose()

    def target_pose(self) -> tuple[Array, Array]:
        """The pose that the controller is driving to, world frame."""
        position, rotation = self._world.target_pose()
        base, turn = self._world.base_pose()
        return turn @ position + base, turn @ rotation

    def base_pose(self) -> tuple[Array, Array]:
        """Position (3,) and rotation (3, 3) of the robot's base, world frame."""
        return self._world.base_pose()

    def project(self, point: Array) -> tuple[float, float]:
        """Where a point (3,) of the world appears, as fractions of the picture's width, height."""
        x, y = self._world.project(point)
        return x / self._size_px[0], y / self._size_px[1]

    def finger_m(self) -> float:
        """How far each finger is open."""
        return self._world.finger_m()

    def close(self) -> None:
        """Free the simulator."""
        self._world.close()


def euler_from_matrix(matrix: Array) -> Array:
    """Angles (3,) with matrix = Rx Ry Rz, which is how ManiSkill reads a rotation."""
    return np.array(
        [
            np.arctan2(-matrix[1, 2], matrix[2, 2]),
            np.arcsin(np.clip(matrix[0, 2], -1.0, 1.0)),
            np.arctan2(-matrix[0, 1], matrix[0, 0]),
        ]
    )


def yaw_from_matrix(matrix: Array) -> float:
    """The turn (rad) about the vertical that comes nearest to a rotation (3, 3)."""
    return float(np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
