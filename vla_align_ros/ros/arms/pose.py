"""Target poses, as CRISP's and FZI's Cartesian controllers take them."""

from __future__ import annotations

import time
from collections.abc import Callable

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode

from vla_align_ros.contract.actions import Pose, matrix_from_rpy
from vla_align_ros.ros.arms.base import CommandTopic, Gripper, Measure, TopicArm
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.messages import make_pose
from vla_align_ros.runtime.safety import LONGEST_TICK_S, Command, Limits
from vla_align_ros.runtime.targets import TargetIntegrator


class PoseArm(TopicArm):
    """Publishes a target pose that leads the measured one by a leash at most, within the limits.

    These controllers keep going to the last target for ever, so a stop is the measured pose itself
    as the target. Where no fresh pose is known nothing is sent: the last target is a leash away.
    """

    topic = ""

    def __init__(
        self,
        node: LifecycleNode,
        config: ArmConfig,
        limits: Limits,
        gripper: Gripper,
        measure: Measure,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        topic = CommandTopic(node, PoseStamped, f"~/{self.topic}")
        super().__init__(config, topic, gripper)
        self._measure = measure
        self._steady = steady
        self._integrator = TargetIntegrator(
            config.leash_m,
            config.leash_rad,
            workspace_m=limits.workspace_m,
            keep_out_m=limits.keep_out_m,
        )
        self._sent_s: float | None = None

    def send(self, command: Command, stamp: Time) -> None:
        """Move the target by the command's twist over the time since the last one."""
        measured = self._read_pose()
        if measured is None:
            return
        now_s = self._steady()
        since_s = self.config.command_period_s if self._sent_s is None else now_s - self._sent_s
        dt_s = min(max(since_s, 1e-3), LONGEST_TICK_S)
        self._sent_s = now_s
        target = self._integrator.advance(measured, command.twist, dt_s)
        self._topic.publish(make_pose(target, stamp, self.config.command_frame))
        self._gripper.send(command.gripper, stamp)

    def stop(self, stamp: Time) -> None:
        """Publish the measured pose once; the gripper keeps what it holds."""
        self._integrator.rest()
        self._gripper.rest()
        self._sent_s = None
        measured = self._read_pose()
        if measured is not None:
            self._topic.publish(make_pose(measured, stamp, self.config.command_frame))

    def _read_pose(self) -> Pose | None:
        values = self._measure()
        if values is None:
            return None
        return Pose(values[:3], matrix_from_rpy(values[3:6]), 0.0)


class CrispArm(PoseArm):
    """`~/target_pose` of CRISP, which ignores every message while two publish on its topic."""

    topic = "target_pose"
    exclusive = True


class FziArm(PoseArm):
    """`~/target_frame` of FZI's cartesian_motion_controller and its relatives."""

    topic = "target_frame"
