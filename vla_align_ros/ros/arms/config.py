"""What the node must know of one robot to command it, from its file in config/robots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import JointState

from vla_align_ros.contract.actions import (
    GRIPPER_CONVENTIONS,
    GripperConvention,
    gripper_to_fraction,
)
from vla_align_ros.errors import ContractError

# How far out of its range a gripper may be measured, in ranges: a few millimetres of play, a jaw
# that opens wider than the policy knows; not millimetres for metres, or degrees for radians.
BEYOND = 4.0


@dataclass(frozen=True, slots=True)
class ArmConfig:
    """Frame, interfaces and gripper convention of one robot.

    `interface` and `gripper_interface` name the controllers' kinds (see `arms`). `leash_m` and
    `leash_rad` limit how far a target pose leads the measured one. `gripper_position_m` says which
    positions of `gripper_joint` mean closed and open, as JointState reports them (metres, radians
    for a turning joint); `gripper_command` which values its controller takes for the two;
    `gripper_action` is the action's name where it is one, `gripper_max_effort` what it may exert
    in the controller's unit (0: its default). `command_period_s` is that of the command timer.
    """

    name: str
    command_frame: str
    interface: str = "twist"
    leash_m: float = 0.05
    leash_rad: float = 0.3
    gripper_interface: str = "forward"
    gripper_joint: str = ""
    gripper_action: str = ""
    gripper_max_effort: float = 0.0
    gripper_position_m: GripperConvention = GRIPPER_CONVENTIONS["fraction_open"]
    gripper_command: GripperConvention = GRIPPER_CONVENTIONS["fraction_open"]
    command_period_s: float = 0.05

    @property
    def needs_pose(self) -> bool:
        """Whether commands are made from the measured pose."""
        return self.interface != "twist"

    def fraction_open(self, message: JointState) -> float | None:
        """Opening of the gripper, 0 closed .. 1 open; None if the message does not tell it.

        Raises ContractError on one so far out of its range that it is of another unit or joint.
        """
        if self.gripper_joint not in message.name:
            return None
        index = list(message.name).index(self.gripper_joint)
        if index >= len(message.position) or not np.isfinite(message.position[index]):
            return None
        fraction = float(gripper_to_fraction(message.position[index], self.gripper_position_m))
        if not -BEYOND <= fraction <= 1.0 + BEYOND:
            scale = self.gripper_position_m
            raise ContractError(
                f"{self.gripper_joint} is far out of the gripper's range",
                got=f"{message.position[index]:g}",
                expected=f"about {scale.closed:g} (closed) to {scale.open:g} (open)",
                fix="correct its driver, or arm.gripper.closed_m and open_m: metres, or radians "
                "where it turns",
            )
        return min(max(fraction, 0.0), 1.0)
