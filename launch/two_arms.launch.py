"""Start two policies beside each other, each in its own namespace, by policy.launch.py twice.

Every argument of policy.launch.py is given to both, or to one as left_<argument> or
right_<argument>. Topics without a leading slash lie in each arm's own namespace:
ros2 launch vla_align_ros two_arms.launch.py robot:=ur_servo camera:=front/image \
    left_arm:=left.yaml right_arm:=right.yaml ee_pose:=ee_pose joint_states:=joint_states \
    delta_twist_cmds:=servo_node/delta_twist_cmds
"""

import importlib.util
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

SIDES = ("left", "right")
ONE_ARM = Path(get_package_share_directory("vla_align_ros")) / "launch" / "policy.launch.py"


def one_arm_arguments():
    """Return what policy.launch.py declares, but for the namespace, which is the side."""
    spec = importlib.util.spec_from_file_location("policy_launch", ONE_ARM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [argument for argument in module.arguments() if argument.name != "namespace"]


def start(context):
    """Include the launch file of one arm for each side."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    def chosen(side, name):
        return value(f"{side}_{name}") or value(name)

    names = [argument.name for argument in one_arm_arguments()]
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(ONE_ARM)),
            launch_arguments=[
                ("namespace", value(f"{side}_namespace")),
                *((name, chosen(side, name)) for name in names),
            ],
        )
        for side in SIDES
    ]


def generate_launch_description():
    """Return the description that ros2 launch runs."""
    declared = [*one_arm_arguments()]
    for side in SIDES:
        declared.append(
            DeclareLaunchArgument(
                f"{side}_namespace", default_value=side, description=f"namespace of the {side} arm"
            )
        )
        declared += [
            DeclareLaunchArgument(
                f"{side}_{argument.name}",
                default_value="",
                description=f"{argument.name} of the {side} arm alone",
            )
            for argument in one_arm_arguments()
        ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
