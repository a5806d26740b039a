"""Declares the node's parameters once, with meaning and range, and reads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_align_ros.contract.actions import GripperConvention
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.arms import ArmConfig
from vla_align_ros.runtime.safety import Limits, Timeouts


@dataclass(frozen=True, slots=True)
class Declaration:
    """One parameter: its default (or its type, where a value is mandatory), text and range."""

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    read_only: bool = False
    constraints: str = ""


BUNDLE_HELP = "folder of the policy bundle that configure loads and verifies"
DECLARATIONS = (
    Declaration("bundle", "", BUNDLE_HELP),
    Declaration("backend", "onnx", "inference backend by its registered name"),
    Declaration("threads", 1, "threads that one inference uses", 1, 64),
    Declaration(
        "image_transport",
        "raw",
        "raw subscribes ~/image, compressed subscribes ~/image/compressed",
        constraints="raw or compressed",
    ),
    Declaration("command_rate_hz", 20.0, "rate of the command timer", 5.0, 200.0),
    Declaration("image_timeout_s", 0.5, "the arm holds when the image is older", 0.02, 10.0),
    Declaration("state_timeout_s", 0.5, "the arm holds when its state is older", 0.02, 10.0),
    Declaration(
        "replan_period_s", 0.0, "least time between planned frames; 0 plans on every one", 0.0, 10.0
    ),
    Declaration(
        "autostart",
        False,
        "configure and activate without a lifecycle manager, once, after start",
        read_only=True,
    ),
    Declaration("arm.name", "", "name of the robot, for diagnostics", read_only=True),
    Declaration(
        "arm.command_frame",
        Parameter.Type.STRING,
        "frame of the twists and of ~/ee_pose; mandatory, must be the policy's action frame",
        read_only=True,
    ),
    Declaration(
        "arm.max_linear_m_s",
        Parameter.Type.DOUBLE,
        "largest speed of the end effector in m/s; mandatory",
        1e-3,
        5.0,
        read_only=True,
    ),
    Declaration(
        "arm.max_angular_rad_s",
        Parameter.Type.DOUBLE,
        "largest angular speed of the end effector in rad/s; mandatory",
        1e-3,
        20.0,
        read_only=True,
    ),
    Declaration(
        "arm.hold_factor",
        2.0,
        "up to this multiple of a limit a command is scaled down to it, beyond it the arm holds",
        1.0,
        100.0,
        read_only=True,
    ),
    Declaration(
        "arm.workspace_min_m",
        Parameter.Type.DOUBLE_ARRAY,
        "lowest corner (x, y, z) of the box that the end effector must stay in; unset is no box",
        read_only=True,
    ),
    Declaration(
        "arm.workspace_max_m",
        Parameter.Type.DOUBLE_ARRAY,
        "highest corner (x, y, z) of that box",
        read_only=True,
    ),
    Declaration(
        "arm.gripper.joint", "", "name of the gripper's joint in ~/joint_states", read_only=True
    ),
    Declaration(
        "arm.gripper.closed_m", 0.0, "its position when closed, in metres", -1.0, 1.0, True
    ),
    Declaration("arm.gripper.open_m", 0.04, "its position when open, in metres", -1.0, 1.0, True),
    Declaration(
        "arm.gripper.command_closed",
        0.0,
        "value on ~/gripper_commands that closes the gripper",
        -1e3,
        1e3,
        True,
    ),
    Declaration(
        "arm.gripper.command_open",
        1.0,
        "value on ~/gripper_commands that opens it fully",
        -1e3,
        1e3,
        True,
    ),
)


@dataclass(frozen=True, slots=True)
class PolicyParameters:
    """The values of one configuration; they hold from configure until cleanup."""

    bundle: str
    backend: str
    threads: int
    image_transport: str
    command_rate_hz: float
    replan_period_s: float
    timeouts: Timeouts
    limits: Limits
    arm: ArmConfig


def declare_parameters(node: Node, declarations: Iterable[Declaration] = DECLARATIONS) -> None:
    """Declare parameters on a node; policy_node's own by default.

    Raises ConfigurationError on a start value of the wrong type or out of its range.
    """
    for declaration in declarations:
        try:
            node.declare_parameter(declaration.name, declaration.default, _describe(declaration))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            number = isinstance(declaration.default, float) or declaration.low is not None
            raise ConfigurationError(
                f"parameter {declaration.name} cannot be used",
                got=error,
                expected=declaration.description,
                fix="write a number within the range, with a decimal point unless it is a count"
                if number
                else "correct it in the parameter file or on the command line",
            ) from error


def refuse_changes(parameters: list[Parameter], *, configured: bool) -> SetParametersResult:
    """Answer a request to set parameters: none changes between configure and cleanup."""
    names = {declaration.name for declaration in DECLARATIONS}
    ours = [parameter.name for parameter in parameters if parameter.name in names]
    if configured and ours:
        reason = f"{', '.join(ours)} can only be set before configure; clean the node up first"
        return SetParametersResult(successful=False, reason=reason)
    return SetParametersResult(successful=True)


def read_parameters(node: Node) -> PolicyParameters:
    """Read one configuration.

    Raises ConfigurationError on a missing or useless value, SafetyError on useless limits,
    ContractError on a gripper whose open and closed are the same.
    """

    def optional(name: str) -> Any:
        return node.get_parameter_or(name, Parameter(name)).value

    def value(name: str) -> Any:
        found = optional(name)
        if found is None or found == "":
            raise ConfigurationError(
                f"parameter {name} is not set",
                got="no value",
                expected=next(d.description for d in DECLARATIONS if d.name == name),
                fix=f"give it in the robot's or the node's parameter file, or by -p {name}:=...",
            )
        return found

    transport = value("image_transport")
    if transport not in ("raw", "compressed"):
        raise ConfigurationError(
            "parameter image_transport names no transport",
            got=transport,
            expected="raw or compressed",
            fix="set image_transport to one of them",
        )
    low, high = optional("arm.workspace_min_m"), optional("arm.workspace_max_m")
    if (low is None) != (high is None):
        raise ConfigurationError(
            "the workspace has one corner only",
            got=f"arm.workspace_min_m {low}, arm.workspace_max_m {high}",
            expected="both corners or neither",
            fix="set the other corner in the robot's file",
        )
    return PolicyParameters(
        bundle=value("bundle"),
        backend=value("backend"),
        threads=value("threads"),
        image_transport=transport,
        command_rate_hz=value("command_rate_hz"),
        replan_period_s=value("replan_period_s"),
        timeouts=Timeouts(image_s=value("image_timeout_s"), state_s=value("state_timeout_s")),
        limits=Limits(
            linear_m_s=value("arm.max_linear_m_s"),
            angular_rad_s=value("arm.max_angular_rad_s"),
            hold_factor=value("arm.hold_factor"),
            workspace_m=None if low is None else (tuple(low), tuple(high)),
        ),
        arm=ArmConfig(
            name=optional("arm.name") or "arm",
            command_frame=value("arm.command_frame"),
            gripper_joint=optional("arm.gripper.joint"),
            gripper_position_m=GripperConvention(
                closed=value("arm.gripper.closed_m"), open=value("arm.gripper.open_m")
            ),
            gripper_command=GripperConvention(
                closed=value("arm.gripper.command_closed"), open=value("arm.gripper.command_open")
            ),
        ),
    )


def _describe(declaration: Declaration) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=declaration.description,
        read_only=declaration.read_only,
        additional_constraints=declaration.constraints,
    )
    if declaration.low is not None and declaration.high is not None:
        if isinstance(declaration.default, int):
            descriptor.integer_range = [
                IntegerRange(from_value=int(declaration.low), to_value=int(declaration.high))
            ]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=declaration.low, to_value=declaration.high)
            ]
    return descriptor
