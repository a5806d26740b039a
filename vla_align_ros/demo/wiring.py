"""Which nodes the demonstration has, with which files, and how their topics meet."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vla_align_ros.share import PACKAGE

ParameterValue = str | int | float | bool

IMAGE = "/front/image"
ARM_TOPICS = {
    "~/ee_pose": "/arm/ee_pose",
    "~/joint_states": "/arm/joint_states",
    "~/delta_twist_cmds": "/arm/delta_twist_cmds",
    "~/gripper_commands": "/arm/gripper_commands",
}
REFEREE_TOPICS = {"~/score": "/sim/score", "~/reset_episode": "/sim/reset_episode"}
INSTRUCTION = {"~/instruction": "/instruction"}
AUTHORITY = {"~/arm": "/policy_node/arm"}
WATCHED = {
    "~/heartbeat": "/policy_node/heartbeat",
    "~/emergency_stop": "/policy_node/emergency_stop",
    "~/watched": "/policy_node/watched",
}


@dataclass(frozen=True)
class NodeSetup:
    """One process of the graph: an executable of this package and all that it is given."""

    executable: str
    parameter_files: tuple[str, ...]
    remaps: Mapping[str, str]
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)

    def command(self, share: Path) -> list[str]:
        """The command line that starts this node with the Python that runs now."""
        words = [sys.executable, "-m", f"{PACKAGE}.ros.{self.executable}", "--ros-args"]
        for name in self.parameter_files:
            words += ["--params-file", str(share / "config" / name)]
        for name, value in self.parameters.items():
            words += ["-p", f"{name}:={format_parameter(value)}"]
        for topic, target in self.remaps.items():
            words += ["-r", f"{topic}:={target}"]
        return words


def demo_nodes(
    *,
    bundle: Path,
    out: Path,
    episodes: int,
    first_seed: int,
    shift: str = "none",
    swap: bool = False,
) -> tuple[NodeSetup, ...]:
    """The simulated robot, the policy, its watchdog and the operator, wired to each other."""
    return (
        NodeSetup(
            "sim_node",
            ("sim.yaml",),
            {"~/image": IMAGE, **ARM_TOPICS, **REFEREE_TOPICS},
            {"seed": first_seed},
        ),
        NodeSetup(
            "policy_node",
            ("policy.yaml", "robots/widowx_sim.yaml"),
            {"~/image": IMAGE, **ARM_TOPICS, **INSTRUCTION, **AUTHORITY, **WATCHED},
            {"bundle": str(bundle), "autostart": True},
        ),
        NodeSetup(
            "watchdog_node",
            ("policy.yaml", "robots/widowx_sim.yaml"),
            {"~/delta_twist_cmds": ARM_TOPICS["~/delta_twist_cmds"], **WATCHED},
        ),
        NodeSetup(
            "operator_node",
            ("sim.yaml",),
            {"~/image": IMAGE, **REFEREE_TOPICS, **INSTRUCTION, **AUTHORITY},
            {
                "out_dir": str(out),
                "episodes": episodes,
                "first_seed": first_seed,
                "shift": shift,
                "swap": swap,
            },
        ),
    )


def format_parameter(value: ParameterValue) -> str:
    """A value as YAML of ROS 2's command line; text is quoted so that it stays text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)
