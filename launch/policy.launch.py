"""Start the policy node on one arm: bundle, camera and arm by argument, the rest by file."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

SHARE = Path(get_package_share_directory("vla_align_ros"))

# Launch argument -> topic of the node that it replaces. An empty one keeps the node's own name.
TOPICS = {
    "camera": "~/image",
    "instruction": "~/instruction",
    "ee_pose": "~/ee_pose",
    "joint_states": "~/joint_states",
    "delta_twist_cmds": "~/delta_twist_cmds",
    "gripper_commands": "~/gripper_commands",
}


def arguments():
    """Declare the arguments: those of nav2 by their names, then ours."""
    robots = sorted(path.stem for path in (SHARE / "config" / "robots").glob("*.yaml"))
    declared = [
        ("namespace", "", "namespace of the node"),
        ("use_sim_time", "false", "take the time from /clock"),
        ("params_file", str(SHARE / "config" / "policy.yaml"), "parameters of the node"),
        ("autostart", "true", "configure and activate the node after start"),
        ("use_respawn", "false", "start the node again if it dies"),
        ("log_level", "info", "least severity that is logged"),
        ("bundle", str(SHARE / "bundles" / "tabletop"), "folder of the policy bundle"),
        ("arm", "widowx_sim", f"robot by name ({', '.join(robots)}) or path of its YAML file"),
        ("camera", "", "image topic; with transport compressed, without its /compressed"),
        ("image_transport", "raw", "raw or compressed"),
        ("instruction", "", "instruction topic (std_msgs/String)"),
        ("ee_pose", "", "end-effector pose topic (geometry_msgs/PoseStamped)"),
        ("joint_states", "", "joint state topic (sensor_msgs/JointState)"),
        ("delta_twist_cmds", "", "twist topic of the controller (geometry_msgs/TwistStamped)"),
        ("gripper_commands", "", "gripper topic of the controller (std_msgs/Float64MultiArray)"),
    ]
    return [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in declared
    ]


def find_arm(arm):
    """Return the robot's file, from its name in config/robots or from its path."""
    named = SHARE / "config" / "robots" / f"{arm}.yaml"
    path = named if named.is_file() else Path(os.path.expanduser(arm))
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in named.parent.glob("*.yaml")))
        raise RuntimeError(
            f"arm: got {arm!r}; expected one of {known}, or the path of a robot file; "
            "fix: arm:=widowx_sim or arm:=/path/to/robot.yaml"
        )
    return str(path)


def start(context):
    """Start the node with what the arguments say."""
    value = {
        name: LaunchConfiguration(name).perform(context)
        for name in (
            "namespace",
            "params_file",
            "log_level",
            "bundle",
            "arm",
            "image_transport",
            *TOPICS,
        )
    }
    flag = {
        name: LaunchConfiguration(name).perform(context).lower() in ("true", "1", "yes")
        for name in ("use_sim_time", "autostart", "use_respawn")
    }
    remappings = [(inner, value[name]) for name, inner in TOPICS.items() if value[name]]
    if value["camera"]:
        remappings.append(("~/image/compressed", value["camera"].rstrip("/") + "/compressed"))
    return [
        LifecycleNode(
            package="vla_align_ros",
            executable="policy_node",
            name="policy_node",
            namespace=value["namespace"],
            # The node starts itself, so that it also does after a respawn.
            parameters=[
                value["params_file"],
                find_arm(value["arm"]),
                {
                    "bundle": os.path.expanduser(value["bundle"]),
                    "image_transport": value["image_transport"],
                    "autostart": flag["autostart"],
                    "use_sim_time": flag["use_sim_time"],
                },
            ],
            remappings=remappings,
            ros_arguments=["--log-level", value["log_level"]],
            respawn=flag["use_respawn"],
            respawn_delay=2.0,
            output="screen",
        )
    ]


def generate_launch_description():
    """Return the description that ros2 launch runs."""
    return LaunchDescription([*arguments(), OpaqueFunction(function=start)])
