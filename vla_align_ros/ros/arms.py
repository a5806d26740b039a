"""Speaks to the arm's controllers: the only place that publishes commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from vla_align_ros.contract.actions import (
    GRIPPER_CONVENTIONS,
    GripperConvention,
    gripper_from_fraction,
    gripper_to_fraction,
)
from vla_align_ros.ros.messages import make_twist
from vla_align_ros.runtime.safety import Command

COMMAND_QOS_DEPTH = 1


@dataclass(frozen=True, slots=True)
class ArmConfig:
    """Frame and gripper convention of one robot, from its file in config/robots.

    `gripper_position_m` says which positions of `gripper_joint` mean closed and open, as
    JointState reports them; `gripper_command` which values its controller takes for the two.
    """

    name: str
    command_frame: str
    gripper_joint: str = ""
    gripper_position_m: GripperConvention = GRIPPER_CONVENTIONS["fraction_open"]
    gripper_command: GripperConvention = GRIPPER_CONVENTIONS["fraction_open"]

    def fraction_open(self, message: JointState) -> float | None:
        """Opening of the gripper, 0 closed .. 1 open; None if the message does not tell it."""
        if self.gripper_joint not in message.name:
            return None
        index = list(message.name).index(self.gripper_joint)
        if index >= len(message.position) or not np.isfinite(message.position[index]):
            return None
        fraction = gripper_to_fraction(message.position[index], self.gripper_position_m)
        return min(max(float(fraction), 0.0), 1.0)


class TwistArm:
    """Velocity commands as MoveIt Servo takes them, and the gripper as a forward controller does.

    Publishes `~/delta_twist_cmds` (TwistStamped in the command frame, m/s and rad/s) and
    `~/gripper_commands` (Float64MultiArray of one value). Both are lifecycle publishers: inactive
    nodes send nothing.
    """

    def __init__(self, node: LifecycleNode, config: ArmConfig) -> None:
        self._node = node
        self.config = config
        self._twist = self._publisher(TwistStamped, "~/delta_twist_cmds")
        self._gripper = self._publisher(Float64MultiArray, "~/gripper_commands")

    def send(self, command: Command, stamp: Time) -> None:
        """Publish a command under a fresh stamp."""
        self._twist.publish(make_twist(command.twist, stamp, self.config.command_frame))
        value = gripper_from_fraction(command.gripper, self.config.gripper_command)
        self._gripper.publish(Float64MultiArray(data=[float(value)]))

    def stop(self, stamp: Time) -> None:
        """Publish one zero twist; the gripper keeps what it holds."""
        self._twist.publish(make_twist(np.zeros(6), stamp, self.config.command_frame))

    def flush(self, timeout_s: float) -> bool:
        """Wait until the controller has acknowledged the last twist; False if it has not."""
        return bool(self._twist.wait_for_all_acked(Duration(seconds=timeout_s)))

    def rivals(self) -> list[str]:
        """Topics of ours on which somebody else publishes too: two masters move one arm."""
        return [
            publisher.topic_name
            for publisher in (self._twist, self._gripper)
            if self._node.count_publishers(publisher.topic_name) > 1
        ]

    def destroy(self) -> None:
        """Take both publishers off the graph."""
        self._node.destroy_lifecycle_publisher(self._twist)
        self._node.destroy_lifecycle_publisher(self._gripper)

    def _publisher(self, kind: type[Any], topic: str) -> Any:
        qos = QoSProfile(depth=COMMAND_QOS_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        return self._node.create_lifecycle_publisher(
            kind, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
