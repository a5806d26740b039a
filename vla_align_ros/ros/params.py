"""Declares the node's parameters once, with meaning and range, and reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
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
from vla_align_ros.contract.spec import ActionSpec
from vla_align_ros.errors import ConfigurationError, SafetyError
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.declarations import DECLARATIONS, Declaration
from vla_align_ros.runtime.boxes import Box
from vla_align_ros.runtime.interlock import InterlockConfig
from vla_align_ros.runtime.motion import MotionLimits
from vla_align_ros.runtime.safety import Limits, Timeouts
from vla_align_ros.runtime.strategies import Strategy, find_strategy

NEARLY = 0.85  # how alike a misspelt name is


@dataclass(frozen=True, slots=True)
class PolicyParameters:
    """The values of one configuration; they hold from configure until cleanup."""

    bundle: str
    backend: str
    allow_unproven: bool
    threads: int
    image_transport: str
    expected_image_rate_hz: float
    sync_tolerance_s: float
    command_rate_hz: float
    command_on_plan: bool
    replan_period_s: float
    chunk_strategy: str
    strategy_settings: dict[str, float]
    unfamiliar_scene: str
    sight_rate_hz: float
    timeouts: Timeouts
    limits: Limits
    arm: ArmConfig

    def find_replan_period_s(self, action: ActionSpec) -> float:
        """Least time between planned frames; below 0 it is the policy's own.

        Raises ConfigurationError if every action would be too old before the next plan.
        """
        asked = self.replan_period_s
        period_s = action.replan_period_s if asked < 0 else asked
        limit_s = self.timeouts.action_s
        if 0 < limit_s <= period_s:
            raise ConfigurationError(
                "the arm would hold between two plans",
                got=f"action_timeout_s {limit_s:g}, a plan every {period_s:g} s",
                expected="actions that stay good until the next plan is there",
                fix="raise action_timeout_s or set a smaller replan_period_s",
            )
        return period_s

    def make_strategy(self) -> Strategy:
        """A fresh strategy of chunk execution."""
        return find_strategy(self.chunk_strategy, **self.strategy_settings)


_STRATEGY_SETTINGS = (
    ("blend", "blend_s", "blend_s"),
    ("ensemble", "decay", "ensemble_decay"),
)


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


def refuse_unknown_arm(node: Node) -> None:
    """ConfigurationError on values below `arm` that no parameter takes.

    ROS ignores them, and with a misspelt limit or keep-out box the arm would move without it.
    """
    names = {
        declaration.name for declaration in DECLARATIONS if declaration.name.startswith("arm.")
    }
    given = {name for name in node._parameter_overrides if name.startswith("arm.")}
    unknown = sorted(given - names)
    if not unknown:
        return
    near = {match for name in unknown for match in get_close_matches(name, names, 2)}
    raise ConfigurationError(
        "the robot's file sets what does not exist",
        got=", ".join(unknown),
        expected=", ".join(sorted(near)) or "the fields of docs/robot.md, The arm's file",
        fix="correct the name in the robot's file, or take it out",
    )


def find_misspelt(node: Node, declarations: Iterable[Declaration] = DECLARATIONS) -> list[str]:
    """Values that no parameter takes, each with the one of `declarations` that it nearly names.

    Others are somebody else's: a file's `/**` is for every node, and policy_node's own are known.
    """
    names = [declaration.name for declaration in declarations]
    known = {declaration.name for declaration in DECLARATIONS}
    strange = sorted(
        name
        for name in node._parameter_overrides
        if not (node.has_parameter(name) or name in known)
    )
    near = ((name, get_close_matches(name, names, 1, NEARLY)) for name in strange)
    return [f"{name} is no parameter; {meant[0]} is" for name, meant in near if meant]


def refuse_changes(parameters: list[Parameter], *, configured: bool) -> SetParametersResult:
    """Answer a request to set parameters: none changes between configure and cleanup."""
    names = {declaration.name for declaration in DECLARATIONS}
    ours = [parameter.name for parameter in parameters if parameter.name in names]
    if configured and ours:
        reason = f"{', '.join(ours)} can only be set before configure; clean the node up first"
        return SetParametersResult(successful=False, reason=reason)
    return SetParametersResult(successful=True)


def read_interlock(node: Node) -> InterlockConfig:
    """Read what is asked for beside the policy before the arm moves: fixed when the node starts."""
    return InterlockConfig(
        start_armed=node.get_parameter("start_armed").value,
        dead_man_s=node.get_parameter("dead_man_s").value,
        watchdog_timeout_s=node.get_parameter("watchdog_timeout_s").value,
    )


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

    def choice(name: str, *choices: str) -> str:
        found = str(value(name))
        if found not in choices:
            raise ConfigurationError(
                f"parameter {name} has no such value",
                got=found,
                expected=" or ".join(choices),
                fix=f"set {name} to one of them",
            )
        return found

    low, high = optional("arm.workspace_min_m"), optional("arm.workspace_max_m")
    if (low is None) != (high is None):
        raise ConfigurationError(
            "the workspace has one corner only",
            got=f"arm.workspace_min_m {low}, arm.workspace_max_m {high}",
            expected="both corners or neither",
            fix="set the other corner in the robot's file",
        )
    strategy = value("chunk_strategy")
    settings = {
        setting: value(parameter)
        for name, setting, parameter in _STRATEGY_SETTINGS
        if name == strategy
    }
    find_strategy(strategy, **settings)
    return PolicyParameters(
        bundle=value("bundle"),
        backend=value("backend"),
        allow_unproven=value("allow_unproven"),
        threads=value("threads"),
        image_transport=choice("image_transport", "raw", "compressed"),
        expected_image_rate_hz=value("expected_image_rate_hz"),
        sync_tolerance_s=value("sync_tolerance_s"),
        command_rate_hz=value("command_rate_hz"),
        command_on_plan=value("command_on_plan"),
        replan_period_s=value("replan_period_s"),
        chunk_strategy=strategy,
        strategy_settings=settings,
        unfamiliar_scene=choice("unfamiliar_scene", "report", "warn", "hold"),
        sight_rate_hz=value("sight_rate_hz"),
        timeouts=Timeouts(
            image_s=value("image_timeout_s"),
            state_s=value("state_timeout_s"),
            action_s=value("action_timeout_s"),
            instruction_s=value("instruction_timeout_s"),
        ),
        limits=Limits(
            linear_m_s=value("arm.max_linear_m_s"),
            angular_rad_s=value("arm.max_angular_rad_s"),
            hold_factor=value("arm.hold_factor"),
            workspace_m=None if low is None else (tuple(low), tuple(high)),
            keep_out_m=_read_boxes(optional("arm.keep_out_m")),
            motion=MotionLimits(
                linear_m_s2=value("arm.max_linear_m_s2") or None,
                angular_rad_s2=value("arm.max_angular_rad_s2") or None,
                linear_m_s3=value("arm.max_linear_m_s3") or None,
                angular_rad_s3=value("arm.max_angular_rad_s3") or None,
                gripper_per_s=value("arm.gripper.max_per_s") or None,
            ),
        ),
        arm=_read_arm(value, optional),
    )


def _read_arm(value: Callable[[str], Any], optional: Callable[[str], Any]) -> ArmConfig:
    return ArmConfig(
        name=optional("arm.name") or "arm",
        command_frame=value("arm.command_frame"),
        interface=value("arm.interface"),
        leash_m=value("arm.leash_m"),
        leash_rad=value("arm.leash_rad"),
        gripper_interface=value("arm.gripper.interface"),
        gripper_joint=optional("arm.gripper.joint"),
        gripper_action=optional("arm.gripper.action"),
        gripper_max_effort=value("arm.gripper.max_effort"),
        gripper_position_m=GripperConvention(
            closed=value("arm.gripper.closed_m"), open=value("arm.gripper.open_m")
        ),
        gripper_command=GripperConvention(
            closed=value("arm.gripper.command_closed"), open=value("arm.gripper.command_open")
        ),
        command_period_s=1.0 / value("command_rate_hz"),
    )


def _read_boxes(numbers: Sequence[float] | None) -> tuple[Box, ...]:
    values = [float(number) for number in numbers or ()]
    if len(values) % 6:
        raise SafetyError(
            "the robot's limit keep_out_m cannot be used",
            got=f"{len(values)} numbers",
            expected="six for each box: lowest x, y, z, then highest x, y, z",
            fix="correct it in the robot's file (config/robots)",
        )
    corners = [(values[k], values[k + 1], values[k + 2]) for k in range(0, len(values), 3)]
    return tuple(zip(corners[::2], corners[1::2], strict=True))


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
