"""End-effector delta control of the WidowX: integrates a twist and solves inverse kinematics."""

from __future__ import annotations

import mink
import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim.robot import SITE_FROM_TOOL
from vla_align_ros.sim.scene import arm_model_path

Array = NDArray[np.float64]

JOINTS = tuple(f"joint_{k}" for k in range(6))
GRIPPER_OPEN_M = 0.044
START_JOINTS_RAD = np.array([0.0, 1.0, 1.0, 0.9, 0.0, 0.0])
REACH_LOW_M = np.array([0.12, -0.30, 0.005])
REACH_HIGH_M = np.array([0.52, 0.30, 0.40])


class ArmKinematics:
    """Differential inverse kinematics on the bare arm (mink), warm-started from the last answer."""

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_path(str(arm_model_path()))
        self._configuration = mink.Configuration(self._model)
        self._task = mink.FrameTask(
            "ee_site", "site", position_cost=1.0, orientation_cost=0.3, lm_damping=1e-4
        )
        self._damping = mink.DampingTask(self._model, cost=1e-3)
        self._limits = [mink.ConfigurationLimit(self._model)]
        self._address = np.array([int(self._model.joint(name).qposadr[0]) for name in JOINTS])

    def solve(
        self, position: Array, rotation: Array, start: Array, *, iterations: int
    ) -> tuple[Array, float]:
        """Joint angles (6,) in rad that bring the tool to `position` (m) and `rotation` (3, 3).

        Starts from `start` (6,) and stops early below 0.3 mm and 0.003 rad. Also returns the
        position error that is left, in metres.
        """
        q = np.zeros(self._model.nq)
        q[self._address] = start
        self._configuration.update(q)
        self._task.set_target(
            mink.SE3.from_rotation_and_translation(
                mink.SO3.from_matrix(rotation @ SITE_FROM_TOOL), np.asarray(position, float)
            )
        )
        for _ in range(iterations):
            error = self._task.compute_error(self._configuration)
            if np.linalg.norm(error[:3]) < 3e-4 and np.linalg.norm(error[3:]) < 3e-3:
                break
            velocity = mink.solve_ik(
                self._configuration,
                [self._task, self._damping],
                0.1,
                "daqp",
                damping=1e-6,
                limits=self._limits,
            )
            self._configuration.integrate_inplace(velocity, 0.1)
        error = self._task.compute_error(self._configuration)
        return self._configuration.q[self._address].copy(), float(np.linalg.norm(error[:3]))
