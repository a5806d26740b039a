"""Start the demonstration: simulated robot, policy and operator; it ends with the operator."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from vla_align_ros.demo.wiring import demo_nodes
from vla_align_ros.flags import read_flag
from vla_align_ros.sim.shifts import SHIFTS

SHARE = Path(get_package_share_directory("vla_align_ros"))

ARGUMENTS = {
    "bundle": (str(SHARE / "bundles" / "tabletop"), "folder of the policy bundle"),
    "out": ("demo_out", "folder that the operator writes its records into"),
    "episodes": ("20", "number of episodes"),
    "first_seed": ("1000000000", "seed of the first scene; the next ones count up"),
    "shift": ("none", f"distribution shift: {', '.join(SHIFTS)}"),
    "swap": ("false", "name the other object, and see that the first is left alone"),
    "log_level": ("info", "least severity that is logged"),
}


def start(context):
    """Start the nodes with what the arguments say."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    swap = read_flag("swap", value["swap"])
    out = Path(os.path.expanduser(value["out"])).resolve()
    out.mkdir(parents=True, exist_ok=True)
    nodes = [
        Node(
            package="vla_align_ros",
            executable=setup.executable,
            parameters=[
                *(str(SHARE / "config" / name) for name in setup.parameter_files),
                dict(setup.parameters),
            ],
            remappings=list(setup.remaps.items()),
            ros_arguments=["--log-level", value["log_level"]],
            output="screen",
        )
        for setup in demo_nodes(
            bundle=Path(os.path.expanduser(value["bundle"])).resolve(),
            out=out,
            episodes=int(value["episodes"]),
            first_seed=int(value["first_seed"]),
            shift=value["shift"],
            swap=swap,
        )
    ]
    ends = [
        RegisterEventHandler(
            OnProcessExit(
                target_action=node,
                on_exit=[EmitEvent(event=Shutdown(reason=f"{node.node_executable} ended"))],
            )
        )
        for node in nodes
    ]
    return [*ends, *nodes]


def generate_launch_description():
    """Return the description that ros2 launch runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
