"""Parameters of the simulated robot and of its operator: what they mean and where they may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rclpy.node import Node

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.declarations import Declaration
from vla_align_ros.ros.params import declare_parameters
from vla_align_ros.ros.referee import Plan
from vla_align_ros.sim.tabletop import TICK_S


def fixed(
    name: str, default: Any, description: str, low: float | None = None, high: float | None = None
) -> Declaration:
    """A parameter that cannot change once the node runs."""
    return Declaration(name, default, description, low, high, read_only=True)


SIM_DECLARATIONS = (
    fixed("frame_id", "base_link", "frame of commands and of ~/ee_pose"),
    fixed("camera_frame_id", "front", "frame_id of ~/image"),
    fixed("gripper_joint", "left_carriage_joint", "the finger's name in ~/joint_states"),
    fixed("image_size_px", 224, "side of the picture", 64, 640),
    fixed("image_rate_hz", 10.0, "pictures a second", 1.0, 25.0),
    fixed("state_rate_hz", 50.0, "poses and joint states a second", 1.0, 50.0),
    fixed("score_rate_hz", 10.0, "scores a second", 1.0, 50.0),
    fixed("incoming_command_timeout_s", 0.1, "an older twist is not executed", 0.02, 1.0),
    fixed("seed", 0, "scene before the first reset", 0, 2**31 - 1),
    fixed("shift", "none", "distribution shift before the first reset"),
)
OPERATOR_DECLARATIONS = (
    fixed("episodes", 20, "how many episodes", 1, 100_000),
    fixed("first_seed", 0, "seed of the first episode; the next ones follow", 0, 2**31 - 1),
    fixed("shift", "none", "named distribution shift of the simulator"),
    fixed("swap", False, "tell the policy the other object than the one that is judged"),
    fixed("episode_timeout_s", 16.0, "simulated seconds for one instruction", 0.1, 600.0),
    fixed("switch_episode", 1, "episode with a switch, from 0; -1 for none", -1, 100_000),
    fixed("switch_every", 0, "also switch in every k-th episode; 0 for none", 0, 100_000),
    fixed("switch_after_s", 2.0, "when the instruction is switched", 0.0, 600.0),
    fixed("out_dir", "", "folder for the records; mandatory"),
    fixed("film_rate_hz", 5.0, "pictures a second in the films", 0.5, 25.0),
    fixed("ready_timeout_s", 90.0, "wait for a simulator and an active policy", 1.0, 1e4),
    fixed("silence_timeout_s", 10.0, "the simulator's longest silence", 1.0, 1e4),
)


@dataclass(frozen=True, slots=True)
class SimParameters:
    """The simulated robot's; `image_every` and the like count ticks of `TICK_S`."""

    frame: str
    camera_frame: str
    finger: str
    image_size_px: int
    timeout_s: float
    image_every: int
    state_every: int
    score_every: int
    first_seed: int
    first_shift: str


@dataclass(frozen=True, slots=True)
class OperatorParameters:
    """The operator's: what to do, where to write, how long to wait."""

    plan: Plan
    out: Path
    film_rate_hz: float
    ready_timeout_s: float
    silence_timeout_s: float


def read_sim_parameters(node: Node) -> SimParameters:
    """Declare the simulated robot's parameters on its node and read them."""
    value = _declare(node, SIM_DECLARATIONS)

    def every(what: str) -> int:
        rate_hz = float(value[f"{what}_rate_hz"])
        return max(1, round(1.0 / (rate_hz * TICK_S)))

    return SimParameters(
        frame=value["frame_id"],
        camera_frame=value["camera_frame_id"],
        finger=value["gripper_joint"],
        image_size_px=value["image_size_px"],
        timeout_s=value["incoming_command_timeout_s"],
        image_every=every("image"),
        state_every=every("state"),
        score_every=every("score"),
        first_seed=value["seed"],
        first_shift=value["shift"],
    )


def read_operator_parameters(node: Node) -> OperatorParameters:
    """Declare the operator's parameters and read them; ConfigurationError without a folder."""
    value = _declare(node, OPERATOR_DECLARATIONS)
    if not value["out_dir"]:
        raise ConfigurationError(
            "The operator does not know where to write",
            got="an empty out_dir",
            expected="a folder",
            fix="set the parameter out_dir",
        )
    return OperatorParameters(
        plan=Plan(**{field.name: value[field.name] for field in fields(Plan)}),
        out=Path(value["out_dir"]),
        film_rate_hz=value["film_rate_hz"],
        ready_timeout_s=value["ready_timeout_s"],
        silence_timeout_s=value["silence_timeout_s"],
    )


def _declare(node: Node, declarations: Sequence[Declaration]) -> dict[str, Any]:
    declare_parameters(node, declarations)
    return {d.name: node.get_parameter(d.name).value for d in declarations}
