"""Speaks to the arm's controllers: the only place that publishes commands."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.arms.base import Arm, Measure
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.arms.gripper import make_gripper
from vla_align_ros.ros.arms.pose import CrispArm, FziArm
from vla_align_ros.ros.arms.twist import TwistArm
from vla_align_ros.runtime.safety import Limits

__all__ = ["ARMS", "Arm", "ArmConfig", "TwistArm", "make_arm"]

ARMS: dict[str, Callable[..., Arm]] = {
    "twist": TwistArm,
    "crisp_pose": CrispArm,
    "fzi_pose": FziArm,
}
"""By the value of `arm.interface`."""


def make_arm(node: LifecycleNode, config: ArmConfig, limits: Limits, measure: Measure) -> Arm:
    """Make the arm and gripper that the robot's file names; they publish while the node is active.

    Raises ConfigurationError on an unknown interface, or on one whose package is not installed.
    """
    if config.interface not in ARMS:
        raise ConfigurationError(
            "no such arm interface",
            got=repr(config.interface),
            expected=" or ".join(ARMS),
            fix="correct arm.interface in the robot's file (config/robots)",
        )
    gripper = make_gripper(node, config)
    return ARMS[config.interface](node, config, limits, gripper, measure)
