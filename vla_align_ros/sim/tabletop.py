"""The table-top: a WidowX AI arm in MuJoCo under end-effector delta control, seen by one camera."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_align_ros.contract.actions import (
    matrix_from_rotvec,
    matrix_from_rpy,
    rpy_from_matrix,
    twist_from_delta,
)
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec
from vla_align_ros.errors import SimulationError
from vla_align_ros.sim import scene
from vla_align_ros.sim.arm import (
    GRIPPER_OPEN_M,
    JOINTS,
    REACH_HIGH_M,
    REACH_LOW_M,
    START_JOINTS_RAD,
    ArmKinematics,
)
from vla_align_ros.sim.catalogue import RECEPTACLES
from vla_align_ros.sim.dress import dress, overlay, place
from vla_align_ros.sim.layout import Layout, Placed, Task, draw_layout
from vla_align_ros.sim.robot import SITE_FROM_TOOL, STATE_NAMES, SimObservation
from vla_align_ros.sim.shifts import Shift, find_shift

Array = NDArray[np.float64]

CONTROL_HZ = 5.0
TICK_S = 0.02
TICKS_PER_STEP = round(1.0 / CONTROL_HZ / TICK_S)
FRAME = "base_link"
CAMERA = "front"
_SETTLE_STEPS = 60
_ON_RECEPTACLE_Z_M = 0.05


def tabletop_spec(horizon: int = 8) -> PolicySpec:
    """What a policy for this table-top takes and gives (5 Hz deltas in `base_link`)."""
    return PolicySpec(
        cameras=(CameraSpec(CAMERA, 224, 224),),
        state=StateSpec(STATE_NAMES),
        action=ActionSpec(frame=FRAME, rate_hz=CONTROL_HZ, horizon=horizon),
    )


class TabletopEnv:
    """One arm, two receptacles, two to four objects. Deterministic by seed.

    `step` is the 5 Hz interface of demonstrations; `tick` is the 50 Hz velocity interface that
    the ROS node drives. A step is ten ticks at constant velocity, so both move the arm alike.
    """

    def __init__(self, *, render_size: int = 224, render: bool = True) -> None:
        if not 16 <= render_size <= scene.RENDER_LIMIT_PX:
            raise SimulationError(
                "Bad picture size",
                got=f"{render_size} px",
                expected=f"16 to {scene.RENDER_LIMIT_PX} px",
                fix="pass another render_size",
            )
        self.model: Any = scene.build_model()
        self.data: Any = mujoco.MjData(self.model)
        self._kinematics = ArmKinematics()
        self._arm = np.array([int(self.model.joint(n).qposadr[0]) for n in JOINTS])
        self._fingers = [
            int(self.model.joint(f"{side}_carriage_joint").qposadr[0]) for side in ("left", "right")
        ]
        self._finger_bodies = [
            int(self.model.body(f"carriage_{side}").id) for side in ("left", "right")
        ]
        self._site = int(self.model.site("ee_site").id)
        self._camera = int(self.model.camera(CAMERA).id)
        self._renderer = mujoco.Renderer(self.model, render_size, render_size) if render else None
        self._layout: Layout | None = None
        self._shift: Shift = find_shift("none")
        self.target_position = np.zeros(3)
        self.target_rotation = np.eye(3)
        self._joint_targets = START_JOINTS_RAD.copy()

    # -- an episode ---------------------------------------------------------------------------
    def reset(self, seed: int, *, shift: str = "none", task: Task | None = None) -> SimObservation:
        """Start the episode of `seed` under the named shift; `task` overrides the drawn one."""
        self.begin(seed, shift=shift, task=task)
        return self.observe()

    def begin(self, seed: int, *, shift: str = "none", task: Task | None = None) -> None:
        """`reset` without looking (no picture is drawn)."""
        self._shift = find_shift(shift)
        layout = draw_layout(seed, self._shift)
        self._layout = layout
        self._task = layout.task
        if task is not None:
            self.set_task(task)
        mujoco.mj_resetData(self.model, self.data)
        dress(self.model, layout)
        place(self.model, self.data, layout)
        self._moved = self._shift.move_at_s is None
        self.place_tool(layout.start_position_m, layout.start_yaw_rad, gripper_open=1.0)
        for _ in range(_SETTLE_STEPS):
            mujoco.mj_step(self.model, self.data)
        self.data.time = 0.0

    @property
    def layout(self) -> Layout:
        """The current episode's scene; SimulationError before the first reset."""
        if self._layout is None:
            raise SimulationError(
                "No episode yet", got="a call before reset", expected="reset(seed)", fix="reset"
            )
        return self._layout

    @property
    def task(self) -> Task:
        """What `succeeded` judges by default."""
        _ = self.layout
        return self._task

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task that this scene allows."""
        return self.layout.tasks

    def set_task(self, task: Task) -> None:
        """Judge another task from now on; its things must be in the scene."""
        self._slot(task.object, self.layout.objects)
        self._slot(task.receptacle, self.layout.receptacles)
        self._task = task

    # -- motion -------------------------------------------------------------------------------
    def place_tool(self, position: ArrayLike, yaw_rad: float, *, gripper_open: float) -> None:
        """Put the arm at a tool pose at once (starts of episodes), pointing straight down."""
        self.target_position = np.clip(np.asarray(position, float), REACH_LOW_M, REACH_HIGH_M)
        self.target_rotation = matrix_from_rpy(np.array([0.0, 0.0, yaw_rad]))
        joints, _ = self._kinematics.solve(
            self.target_position, self.target_rotation, START_JOINTS_RAD, iterations=200
        )
        self._joint_targets = joints
        self.data.qpos[self._arm] = joints
        self.data.qpos[self._fingers] = GRIPPER_OPEN_M * gripper_open
        self.data.qvel[:] = 0.0
        self.data.ctrl[:6] = joints
        self.data.ctrl[6] = GRIPPER_OPEN_M * gripper_open
        mujoco.mj_forward(self.model, self.data)

    def tick(self, twist: ArrayLike, gripper_open: float) -> None:
        """Advance 20 ms under a tool velocity (6,) in m/s and rad/s, base frame.

        `gripper_open` above 0.5 opens the gripper, otherwise it closes.
        """
        velocity = np.asarray(twist, float)
        self.target_position = np.clip(
            self.target_position + velocity[:3] * TICK_S, REACH_LOW_M, REACH_HIGH_M
        )
        if np.any(velocity[3:]):
            self.target_rotation = matrix_from_rotvec(velocity[3:] * TICK_S) @ self.target_rotation
        if np.any(velocity):
            self._joint_targets, _ = self._kinematics.solve(
                self.target_position, self.target_rotation, self._joint_targets, iterations=2
            )
        self.data.ctrl[:6] = self._joint_targets
        self.data.ctrl[6] = GRIPPER_OPEN_M if gripper_open > 0.5 else 0.0
        mujoco.mj_step(self.model, self.data, nstep=round(TICK_S / scene.PHYSICS_STEP_S))
        self._move_object_once()

    def step(self, action: ArrayLike) -> SimObservation:
        """One 5 Hz step of a delta action (7,): metres, rotation vector in rad, gripper 0..1."""
        self.advance(action)
        return self.observe()

    def advance(self, action: ArrayLike) -> None:
        """`step` without looking (no picture is drawn)."""
        delta = np.asarray(action, float)
        twist = twist_from_delta(delta, 1.0 / CONTROL_HZ)
        for _ in range(TICKS_PER_STEP):
            self.tick(twist, float(delta[6]))

    def save(self) -> dict[str, Any]:
        """All that changes within an episode, for `restore`."""
        size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        physics = np.zeros(size)
        mujoco.mj_getState(self.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {
            "physics": physics,
            "position": self.target_position.copy(),
            "rotation": self.target_rotation.copy(),
            "joints": self._joint_targets.copy(),
            "moved": self._moved,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Return to what `save` gave, in the same episode."""
        mujoco.mj_setState(
            self.model, self.data, saved["physics"], mujoco.mjtState.mjSTATE_INTEGRATION
        )
        self.target_position = saved["position"].copy()
        self.target_rotation = saved["rotation"].copy()
        self._joint_targets = saved["joints"].copy()
        self._moved = saved["moved"]
        mujoco.mj_forward(self.model, self.data)

    # -- senses -------------------------------------------------------------------------------
    def observe(self) -> SimObservation:
        """Picture and proprioception of now."""
        return SimObservation(self.render(), self.state(), float(self.data.time))

    def state(self) -> NDArray[np.float32]:
        """Proprioception (7,) float32, as `STATE_NAMES`."""
        position, rotation = self.tool_pose()
        return np.array(
            [*position, *rpy_from_matrix(rotation), self.gripper_open()], dtype=np.float32
        )

    def tool_pose(self) -> tuple[Array, Array]:
        """Measured tool position (3,) in metres and rotation (3, 3), base frame."""
        position = self.data.site_xpos[self._site].copy()
        rotation = self.data.site_xmat[self._site].reshape(3, 3) @ SITE_FROM_TOOL.T
        return position, rotation

    def gripper_open(self) -> float:
        """Measured opening, 0 closed to 1 open."""
        return float(np.clip(self.data.qpos[self._fingers[0]] / GRIPPER_OPEN_M, 0.0, 1.0))

    def gripper_speed(self) -> float:
        """Measured speed of the fingers, in openings a second."""
        address = int(self.model.joint("left_carriage_joint").dofadr[0])
        return float(self.data.qvel[address] / GRIPPER_OPEN_M)

    def render(self) -> NDArray[np.uint8] | None:
        """The front camera's picture (S, S, 3) uint8 RGB; None without a renderer."""
        if self._renderer is None:
            return None
        self._renderer.update_scene(self.data, self._camera)
        picture: NDArray[np.uint8] = self._renderer.render()
        if self._shift.overlay > 0.0:
            picture = overlay(picture, self._shift.overlay, self.layout.overlay_seed)
        return picture

    # -- truth (for the expert, the labels and the judge) -------------------------------------
    def object_pose(self, name: str) -> tuple[Array, float]:
        """True position (3,) in metres and yaw (rad) of a named object."""
        body = self.data.body(f"object_{self._slot(name, self.layout.objects)}")
        rotation = body.xmat.reshape(3, 3)
        return body.xpos.copy(), float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def receptacle_position(self, name: str) -> Array:
        """True position (3,) in metres of a named receptacle's centre on the table."""
        body = self.data.body(f"receptacle_{self._slot(name, self.layout.receptacles)}")
        return np.array(body.xpos)

    def held_object(self) -> str | None:
        """Name of the object that both fingers touch, if any."""
        for slot, placed in enumerate(self.layout.objects):
            touched = self._touching(f"object_{slot}")
            if all(finger in touched for finger in self._finger_bodies):
                return placed.name
        return None

    def succeeded(self, task: Task | None = None) -> bool:
        """Whether the object rests on its receptacle and the gripper has let go of it."""
        task = task or self.task
        position, _ = self.object_pose(task.object)
        centre = self.receptacle_position(task.receptacle)
        slot = self._slot(task.receptacle, self.layout.receptacles)
        touched = self._touching(f"object_{self._slot(task.object, self.layout.objects)}")
        inside = np.hypot(*(position - centre)[:2]) < RECEPTACLES[task.receptacle].radius_m
        rests = int(self.model.body(f"receptacle_{slot}").id) in touched
        free = not any(finger in touched for finger in self._finger_bodies)
        return bool(inside and rests and free and position[2] < _ON_RECEPTACLE_Z_M)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # -- inside -------------------------------------------------------------------------------
    @staticmethod
    def _slot(name: str, placed: tuple[Placed, ...]) -> int:
        names = [p.name for p in placed]
        if name not in names:
            raise SimulationError(
                "Not in this scene",
                got=repr(name),
                expected="one of " + ", ".join(names),
                fix="name a thing of the current layout",
            )
        return names.index(name)

    def _touching(self, body: str) -> set[int]:
        own = int(self.model.body(body).id)
        pairs = self.model.geom_bodyid[np.asarray(self.data.contact.geom).reshape(-1, 2)]
        return {int(b if a == own else a) for a, b in pairs if own in (a, b)}

    def _move_object_once(self) -> None:
        at = self._shift.move_at_s
        if self._moved or at is None or self.data.time < at:
            return
        self._moved = True
        slot = self._slot(self.layout.task.object, self.layout.objects)
        address = int(self.model.joint(f"object_{slot}").qposadr[0])
        self.data.qpos[address : address + 2] += self.layout.move_m
        mujoco.mj_forward(self.model, self.data)
