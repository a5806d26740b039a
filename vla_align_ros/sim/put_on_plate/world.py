"""The physics and the camera: a scene on stock ManiSkill 3, one at a time."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_align_ros.sim.put_on_plate.assets import ROBOT, STAGE, Model
from vla_align_ros.sim.put_on_plate.environments import CONTROL_HZ
from vla_align_ros.sim.put_on_plate.grasps import Hull
from vla_align_ros.sim.put_on_plate.layout import Scene, Thing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, about themselves
    import sapien
    import torch
    from mani_skill.envs.sapien_env import BaseEnv
    from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env import (
        WidowX250SBridgeDatasetFlatTable,
    )
    from mani_skill.utils import sapien_utils
    from mani_skill.utils.logging_utils import logger
    from mani_skill.utils.structs.pose import Pose
    from mani_skill.utils.structs.types import SimConfig

Array = NDArray[np.float64]

CAMERA = "3rd_view_camera"
FOCAL_PX, CENTRE_PX, FULL_WIDTH_PX = 623.588, (319.501, 239.545), 640
SIM_HZ = 500
ROBOT_POSITION_M = (0.147, 0.028, 0.870)
AWAY_M = 1.0
TABLE_TOP_M = 0.8695
SETTLE_STEPS, LONG_SETTLE_STEPS = 50, 600
STILL_M_S, STILL_RAD_S = 1e-3, 1e-2
FRICTION = 1.0


class PlateWorld(BaseEnv):
    """ManiSkill's environment of one scene; `load` builds the next one.

    Written for one scene at a time on the CPU's physics; pictures come from `render_backend`.
    It sets torch's threads in this process to one: its tensors are small, and on a busy machine
    threads that wait for each other made a picture of 320x240 take 52 ms instead of 20.
    """

    SUPPORTED_OBS_MODES = ("rgb+segmentation",)
    SUPPORTED_REWARD_MODES = ("none",)

    def __init__(self, root: Path, width: int, height: int, render_backend: str) -> None:
        torch.set_num_threads(1)
        self._root = root
        self._scene: Scene | None = None
        self._actors: dict[str, Any] = {}
        scale = width / FULL_WIDTH_PX
        robot = type(
            "WidowX250S",
            (WidowX250SBridgeDatasetFlatTable,),
            {"urdf_path": str(root / ROBOT), "uid": "widowx250s_put_on_plate"},
        )
        logger.setLevel(logging.ERROR)  # it warns of its own robot at every scene
        focal, (x, y) = FOCAL_PX * scale, (value * scale for value in CENTRE_PX)
        super().__init__(
            robot_uids=robot,
            obs_mode="rgb+segmentation",
            sim_backend="physx_cpu",
            render_backend=render_backend,
            sensor_configs={
                "shader_pack": "default",
                "width": width,
                "height": height,
                "intrinsic": np.array([[focal, 0, x], [0, focal, y], [0, 0, 1]]),
            },
        )

    # -- what ManiSkill calls -----------------------------------------------------------------
    @property
    def _default_sim_config(self) -> Any:
        return SimConfig(sim_freq=SIM_HZ, control_freq=round(CONTROL_HZ), spacing=20)

    def _load_agent(self, options: dict[str, Any]) -> None:
        super()._load_agent(options, sapien.Pose(p=[0.127, 0.060, 0.85], q=[0, 0, 0, 1]))

    def _load_lighting(self, options: dict[str, Any]) -> None:
        self.scene.set_ambient_light([0.3] * 3)
        self.scene.add_directional_light([0, 0, -1], [2.2] * 3)
        self.scene.add_directional_light([-1, -0.5, -1], [0.7] * 3)
        self.scene.add_directional_light([1, 1, -1], [0.7] * 3)

    def _load_scene(self, options: dict[str, Any]) -> None:
        sapien_utils.set_articulation_render_material(
            self.agent.robot._objs[0], specular=0.9, roughness=0.3
        )
        self._load_table()
        self._actors = {}
        if self._scene is not None:
            for number, thing in enumerate(self._scene.things):
                self._actors[thing.model.key] = self._load_thing(thing.model, number)

    def _load_table(self) -> None:
        builder = self.scene.create_actor_builder()
        stage = self._root / STAGE
        if stage.is_file():
            upright = sapien.Pose(q=[0.707, 0.707, 0, 0])
            builder.add_nonconvex_collision_from_file(str(stage), pose=upright)
            builder.add_visual_from_file(str(stage), pose=upright)
            builder.initial_pose = sapien.Pose([2.0634, 2.8313, 0.0])
        else:
            half = [0.6, 0.6, TABLE_TOP_M / 2]
            builder.add_box_collision(half_size=half)
            builder.add_box_visual(half_size=half)
            builder.initial_pose = sapien.Pose([0.0, 0.0, TABLE_TOP_M / 2])
        builder.build_static(name="table")

    def _load_thing(self, model: Model, number: int) -> Any:
        material = sapien.physx.PhysxMaterial(FRICTION, FRICTION, 0.0)
        builder = self.scene.create_actor_builder()
        builder.add_multiple_convex_collisions_from_file(
            str(model.folder / "collision.obj"), material=material, density=model.density
        )
        names = ("textured.obj", "textured.dae", "textured.glb")
        visual = next(path for name in names if (path := model.folder / name).exists())
        builder.add_visual_from_file(str(visual))
        builder.initial_pose = sapien.Pose([0.0, 0.5 * number, 2.0])
        return builder.build(name=model.key)

    def _initialize_episode(self, env_idx: Any, options: dict[str, Any]) -> None:
        if self._scene is None:
            return
        x, y, z = ROBOT_POSITION_M
        self.agent.robot.set_pose(sapien.Pose([x, y, z + AWAY_M], q=[0, 0, 0, 1]))
        for thing in self._scene.things:
            self._place(thing)
        self.settle(SETTLE_STEPS)
        if self._are_moving():
            self.settle(LONG_SETTLE_STEPS)
        self.agent.robot.set_pose(sapien.Pose([x, y, z], q=[0, 0, 0, 1]))
        self.agent.reset(init_qpos=np.array(self._scene.start_joints))

    def evaluate(self) -> dict[str, Any]:
        """Nothing: the wrapper judges."""
        return {}

    # -- what the wrapper calls ---------------------------------------------------------------
    def load(self, scene: Scene, seed: int) -> None:
        """Build a scene anew and let its things come to rest."""
        self._scene = scene
        self.reset(seed=seed, options={"reconfigure": True})

    def advance(self, action: ArrayLike) -> None:
        """One 5 Hz step of ManiSkill's own action (7,): metres, Euler angles, gripper -1..1."""
        self._step_action(torch.as_tensor(np.asarray(action, np.float32)))

    def settle(self, steps: int) -> None:
        """Advance the physics with the robot's targets as they are."""
        for _ in range(steps):
            self.scene.step()

    def move(self, thing: Thing, position_m: tuple[float, float, float]) -> None:
        """Put a thing somewhere else, with its first heading, and let it fall."""
        self._place(Thing(thing.model, position_m, thing.heading_rad))
        self.settle(SETTLE_STEPS)

    def look(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The camera's picture (H, W, 3) and where robot and things are in it (H, W)."""
        seen = self.get_obs()["sensor_data"][CAMERA]
        picture = seen["rgb"][0].cpu().numpy()
        labels = seen["segmentation"][0, ..., 0].cpu().numpy()
        return picture, np.isin(labels, self._foreground())

    def project(self, point: Array) -> tuple[float, float]:
        """Where a point (3,) of the world appears in the picture, in pixels from its upper left."""
        camera = self.get_sensor_params()[CAMERA]
        extrinsic, intrinsic = (
            camera[name][0].cpu().numpy().astype(float) for name in ("extrinsic_cv", "intrinsic_cv")
        )
        x, y, depth = intrinsic @ (extrinsic @ np.r_[point, 1.0])
        return float(x / depth), float(y / depth)

    def pose(self, key: str) -> tuple[Array, Array]:
        """Position (3,) and rotation (3, 3) of a thing, in the world."""
        return _read_pose(self._actors[key].pose)

    def tool_pose(self) -> tuple[Array, Array]:
        """Position (3,) and rotation (3, 3) of the gripper, in the world."""
        return _read_pose(self.agent.robot.links_map["ee_gripper_link"].pose)

    def base_pose(self) -> tuple[Array, Array]:
        """Position (3,) and rotation (3, 3) of the robot's base, in the world."""
        return _read_pose(self.agent.robot.pose)

    def finger_m(self) -> float:
        """How far a finger is open."""
        return float(self.agent.robot.get_qpos()[0, 6])

    def is_grasped(self, key: str) -> bool:
        """Whether both fingers press on a thing."""
        return bool(self.agent.is_grasping(self._actors[key])[0])

    def contact_n(self, one: str, other: str) -> float:
        """Force between two things."""
        force = self.scene.get_pairwise_contact_forces(self._actors[one], self._actors[other])
        return float(torch.linalg.norm(force[0]))

    def target_pose(self) -> tuple[Array, Array]:
        """Where the controller wants the gripper, in the robot's base frame."""
        return _read_pose(Pose.create(self.agent.controller.get_state()["arm"]["target_pose"]))

    def hulls(self, key: str) -> list[Hull]:
        """Corners (N, 3) and triangles (M, 3) of each part that collides, in the thing's frame."""
        return [
            (
                np.asarray(shape.vertices, float) * shape.scale @ _rotation(shape.local_pose.q).T
                + shape.local_pose.p,
                np.asarray(shape.triangles, int).reshape(-1, 3),
            )
            for shape in self._actors[key]._bodies[0].collision_shapes
        ]

    # -- inside -------------------------------------------------------------------------------
    def _place(self, thing: Thing) -> None:
        half = thing.heading_rad / 2
        self._actors[thing.model.key].set_pose(
            Pose.create_from_pq(
                torch.tensor([thing.position_m], dtype=torch.float32),
                torch.tensor([[np.cos(half), 0.0, 0.0, np.sin(half)]], dtype=torch.float32),
            )
        )

    def _are_moving(self) -> bool:
        speeds = [torch.linalg.norm(a.linear_velocity) for a in self._actors.values()]
        turns = [torch.linalg.norm(a.angular_velocity) for a in self._actors.values()]
        return bool(sum(speeds) > STILL_M_S or sum(turns) > STILL_RAD_S)

    def _foreground(self) -> Array:
        things = [actor.per_scene_id for actor in self._actors.values()]
        links = [link.per_scene_id for link in self.agent.robot.get_links()]
        return torch.concatenate([*things, *links]).cpu().numpy()


def _read_pose(pose: Any) -> tuple[Array, Array]:
    return pose.p[0].cpu().numpy().astype(float), _rotation(pose.q[0].cpu().numpy())


def _rotation(quaternion: ArrayLike) -> Array:
    """Rotation matrix, orthonormal to double precision, of a quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(quaternion, float) / np.linalg.norm(np.asarray(quaternion, float))
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    matrix: Array = np.eye(3) + 2.0 * w * cross + 2.0 * cross @ cross
    return matrix
