"""Every parameter of policy_node: name, default, meaning and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rclpy.parameter import Parameter


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
    Declaration(
        "allow_unproven",
        False,
        "configure although no proof says that bundle and backend act as the trained model",
    ),
    Declaration("threads", 1, "threads that one inference uses", 1, 64),
    Declaration(
        "thread_priority",
        0,
        "real-time priority of the thread that commands, where the system permits one; 0: none",
        0,
        98,
        read_only=True,
    ),
    Declaration(
        "image_transport",
        "raw",
        "raw subscribes ~/image (~/<camera>/image for each of several), compressed the same with "
        "/compressed",
        constraints="raw or compressed",
    ),
    Declaration(
        "expected_image_rate_hz",
        0.0,
        "rate below which diagnostics warn of a camera; 0 trusts what the middleware reports lost",
        0.0,
        1000.0,
    ),
    Declaration(
        "sync_tolerance_s",
        0.1,
        "largest distance of the stamps of pictures and state that are used together",
        1e-3,
        1.0,
    ),
    Declaration(
        "command_rate_hz",
        20.0,
        "rate of the command timer, and what the watchdog holds it to",
        5.0,
        200.0,
        read_only=True,
    ),
    Declaration(
        "command_on_plan",
        False,
        "send the first command of a new plan at once instead of at the timer's next tick",
    ),
    Declaration("image_timeout_s", 0.5, "the arm holds when the image is older", 0.02, 10.0),
    Declaration("state_timeout_s", 0.5, "the arm holds when its state is older", 0.02, 10.0),
    Declaration(
        "replan_period_s",
        -1.0,
        "least time between planned frames; below 0: two of the policy's actions, as measured, but "
        "half a plan at most; 0 plans on every frame",
        -1.0,
        10.0,
    ),
    Declaration(
        "action_timeout_s",
        0.0,
        "the arm holds when the observation behind an action is older; 0 is the chunk's own end",
        0.0,
        10.0,
    ),
    Declaration(
        "instruction_timeout_s",
        0.0,
        "the arm holds when the instruction was last given longer ago; 0 keeps it for ever",
        0.0,
        3600.0,
    ),
    Declaration(
        "chunk_strategy",
        "newest",
        "what is executed where plans overlap",
        constraints="newest, queue, ensemble, blend or rtc (a policy that takes committed actions)",
    ),
    Declaration(
        "blend_s",
        0.2,
        "hand-over time of the strategy blend, less than what a plan outlasts replan_period_s by",
        0.01,
        5.0,
    ),
    Declaration("ensemble_decay", 0.01, "weight decay of the strategy ensemble", 0.0, 10.0),
    Declaration(
        "unfamiliar_scene",
        "report",
        "what a scene unlike the training's does: report measures it while somebody subscribes to "
        "~/sight, warn always, hold always and stops the arm; the last two need a sight graph",
        constraints="report, warn or hold",
    ),
    Declaration("sight_rate_hz", 1.0, "how often the scene is looked at for ~/sight", 0.1, 10.0),
    Declaration(
        "start_armed", False, "whether the arm may move without a call of ~/arm", read_only=True
    ),
    Declaration(
        "dead_man_s",
        0.0,
        "how long a true ~/dead_man is believed; 0 asks for no dead-man switch",
        0.0,
        10.0,
        read_only=True,
    ),
    Declaration(
        "watchdog_timeout_s",
        0.5,
        "how long one ~/watched is believed, which a watchdog repeats; 0 asks for no watchdog",
        0.0,
        10.0,
        read_only=True,
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
    *(
        Declaration(f"arm.{name}", 0.0, f"{text}; 0 sets no limit", 0.0, 1e4, read_only=True)
        for name, text in (
            ("max_linear_m_s2", "largest acceleration of the end effector in m/s2"),
            ("max_angular_rad_s2", "largest angular acceleration in rad/s2"),
            ("max_linear_m_s3", "largest jerk in m/s3, with an acceleration limit beside it"),
            ("max_angular_rad_s3", "largest angular jerk in rad/s3, likewise"),
            ("gripper.max_per_s", "fraction of its range that the gripper moves in a second"),
        )
    ),
    Declaration(
        "arm.keep_out_m",
        Parameter.Type.DOUBLE_ARRAY,
        "boxes that the end effector must not enter: six numbers each, lowest x, y, z and highest",
        read_only=True,
    ),
    Declaration(
        "arm.interface",
        "twist",
        "how the arm's controller is commanded",
        read_only=True,
        constraints="twist (MoveIt Servo), crisp_pose or fzi_pose",
    ),
    Declaration(
        "arm.leash_m", 0.05, "how far a target pose may lead the measured one", 1e-3, 0.5, True
    ),
    Declaration(
        "arm.leash_rad", 0.3, "the same for its rotation, in radians", 1e-2, 1.5, read_only=True
    ),
    Declaration(
        "arm.gripper.interface",
        "forward",
        "how the gripper's controller is commanded",
        read_only=True,
        constraints="forward, trajectory, gripper_command, parallel_gripper_command or none",
    ),
    Declaration(
        "arm.gripper.joint", "", "name of the gripper's joint in ~/joint_states", read_only=True
    ),
    Declaration(
        "arm.gripper.action", "", "name of the gripper's action, where it is one", read_only=True
    ),
    Declaration(
        "arm.gripper.max_effort",
        0.0,
        "effort that the action may use, in the controller's unit; 0 is its default",
        0.0,
        1e3,
        True,
    ),
    Declaration(
        "arm.gripper.closed_m",
        0.0,
        "its position when closed, in metres (radians for a turning joint)",
        -7.0,
        7.0,
        True,
    ),
    Declaration("arm.gripper.open_m", 0.04, "its position when open, likewise", -7.0, 7.0, True),
    Declaration(
        "arm.gripper.command_closed",
        0.0,
        "value of the gripper's controller that closes it",
        -1e3,
        1e3,
        True,
    ),
    Declaration(
        "arm.gripper.command_open",
        1.0,
        "value of the gripper's controller that opens it fully",
        -1e3,
        1e3,
        True,
    ),
)
