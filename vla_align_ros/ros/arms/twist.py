"""Velocity commands, as MoveIt Servo takes them."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode

from vla_align_ros.ros.arms.base import CommandTopic, Gripper, Measure
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.messages import make_twist
from vla_align_ros.runtime.safety import Command, Limits


class TwistArm:
    """Publishes `~/delta_twist_cmds`: TwistStamped in the command frame, m/s and rad/s.

    A stop is one zero; the controller's own timeout ends a motion that nobody continues.
    """

    exclusive = False

    def __init__(
        self,
        node: LifecycleNode,
        config: ArmConfig,
        limits: Limits,
        gripper: Gripper,
        measure: Measure,
    ) -> None:
        self.config = config
        self._gripper = gripper
        self._topic = CommandTopic(node, TwistStamped, "~/delta_twist_cmds")

    def send(self, command: Command, stamp: Time) -> None:
        """Publish a command under a fresh stamp."""
        self._topic.publish(make_twist(command.twist, stamp, self.config.command_frame))
        self._gripper.send(command.gripper, stamp)

    def stop(self, stamp: Time) -> None:
        """Publish one zero twist; the gripper keeps what it holds."""
        self._topic.publish(make_twist(np.zeros(6), stamp, self.config.command_frame))
        self._gripper.rest()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the controller has acknowledged the last twist; False if it has not."""
        return bool(self._topic.publisher.wait_for_all_acked(Duration(seconds=timeout_s)))

    def rivals(self) -> list[str]:
        """Topics of ours on which somebody else publishes too: two masters move one arm."""
        return [*([self._topic.name] if self._topic.has_rival() else []), *self._gripper.rivals()]

    def destroy(self) -> None:
        """Take the publishers off the graph."""
        self._topic.destroy()
        self._gripper.destroy()
