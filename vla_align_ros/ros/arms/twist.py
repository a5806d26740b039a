"""Velocity commands, as MoveIt Servo takes them."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from rclpy.lifecycle import LifecycleNode

from vla_align_ros.ros.arms.base import CommandTopic, Gripper, Measure, TopicArm
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.messages import make_twist
from vla_align_ros.runtime.safety import Command, Limits


class TwistArm(TopicArm):
    """Publishes `~/delta_twist_cmds`: TwistStamped in the command frame, m/s and rad/s.

    A stop is one zero; the controller's own timeout ends a motion that nobody continues.
    """

    def __init__(
        self,
        node: LifecycleNode,
        config: ArmConfig,
        limits: Limits,
        gripper: Gripper,
        measure: Measure,
    ) -> None:
        topic = CommandTopic(node, TwistStamped, "~/delta_twist_cmds")
        super().__init__(config, topic, gripper)

    def send(self, command: Command, stamp: Time) -> None:
        """Publish a command under a fresh stamp."""
        self._topic.publish(make_twist(command.twist, stamp, self.config.command_frame))
        self._gripper.send(command.gripper, stamp)

    def stop(self, stamp: Time) -> None:
        """Publish one zero twist; the gripper keeps what it holds."""
        self._topic.publish(make_twist(np.zeros(6), stamp, self.config.command_frame))
        self._gripper.rest()
