"""Start the policy node on one arm: bundle, camera and robot by argument, the rest by file."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import ComposableNodeContainer, Node
from launch_ros.descriptions import ComposableNode

from vla_align_ros.flags import read_flag
from vla_align_ros.share import CAMERA_PROFILE, PROFILE_VARIABLES

SHARE = Path(get_package_share_directory("vla_align_ros"))
DEFAULT_ROBOT = "widowx_sim"
FLAGS = ("use_sim_time", "autostart", "use_respawn", "watchdog", "joystick")

# Launch argument -> topic of the node that it replaces. An empty one keeps the node's own name.
TOPICS = {
    "instruction": "~/instruction",
    "ee_pose": "~/ee_pose",
    "joint_states": "~/joint_states",
    "delta_twist_cmds": "~/delta_twist_cmds",
    "target_pose": "~/target_pose",
    "target_frame": "~/target_frame",
    "gripper_commands": "~/gripper_commands",
}


def arguments():
    """Declare the arguments: those of nav2 by their names, then ours."""
    robots = sorted(path.stem for path in (SHARE / "config" / "robots").glob("*.yaml"))
    declared = [
        ("namespace", "", "namespace of the node"),
        ("use_sim_time", "false", "take the time from /clock"),
        ("params_file", str(SHARE / "config" / "policy.yaml"), "parameters of the nodes"),
        ("autostart", "true", "configure and activate the node after start"),
        ("use_respawn", "false", "start the node again if it dies"),
        ("log_level", "info", "least severity that is logged"),
        ("watchdog", "true", "start the process that stops the arm when the node cannot"),
        ("joystick", "false", "start joystick_stop: a button of the topic `joy` stops"),
        ("enclave", "", "SROS2 enclave of the nodes, as in config/sros2: each has its own below"),
        ("bundle", str(SHARE / "bundles" / "tabletop"), "folder of the policy bundle"),
        (
            "robot",
            "",
            f"robot by name ({', '.join(robots)}) or path of its YAML file; {DEFAULT_ROBOT} where "
            "neither this nor arm is given",
        ),
        (
            "arm",
            "",
            "the same for one arm: alone it is the robot's whole file, beside robot its values "
            "replace the robot's",
        ),
        (
            "camera",
            "",
            "image topic, or name=topic,name=topic for a policy with several cameras; with "
            "transport compressed, without its /compressed",
        ),
        ("camera_package", "", "package of a camera driver to start with the Fast DDS profile"),
        ("camera_executable", "", "the driver's executable, for a process of its own"),
        (
            "camera_plugin",
            "",
            "the driver's component, for a container in a process of its own; neither with "
            "use_respawn nor with enclave",
        ),
        ("camera_name", "camera", "the driver's node name; its topics are often below it"),
        ("camera_params", "", "the driver's parameter file"),
        ("joy", "", "joystick topic (sensor_msgs/Joy); joy in the namespace where it is not given"),
        ("image_transport", "", "raw or compressed; as in params_file where it is not given"),
        ("instruction", "", "instruction topic (std_msgs/String)"),
        ("ee_pose", "", "end-effector pose topic (geometry_msgs/PoseStamped)"),
        ("joint_states", "", "joint state topic (sensor_msgs/JointState)"),
        ("delta_twist_cmds", "", "twist topic of the controller (geometry_msgs/TwistStamped)"),
        ("target_pose", "", "target topic of CRISP (geometry_msgs/PoseStamped)"),
        ("target_frame", "", "target topic of FZI's controllers (geometry_msgs/PoseStamped)"),
        ("gripper_commands", "", "gripper topic of the controller, by arm.gripper.interface"),
    ]
    return [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in declared
    ]


def find_file(name, path):
    """Return the path of a parameter file; ROS itself only warns of one that is not there."""
    found = Path(os.path.expanduser(path))
    if not found.is_file():
        raise RuntimeError(
            f"{name}: got {path!r}; expected a parameter file; fix: correct the path"
        )
    return str(found)


def find_robot(name):
    """Return the robot's file, from its name in config/robots or from its path."""
    named = SHARE / "config" / "robots" / f"{name}.yaml"
    path = named if named.is_file() else Path(os.path.expanduser(name))
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in named.parent.glob("*.yaml")))
        raise RuntimeError(
            f"robot, arm: got {name!r}; expected one of {known}, or the path of a robot file; "
            "fix: robot:=widowx_sim or arm:=/path/to/arm.yaml"
        )
    return str(path)


def parameter_files(value):
    """Return the node's file, the robot's, and the arm's over it."""
    names = [name for name in (value["robot"], value["arm"]) if name] or [DEFAULT_ROBOT]
    return [
        find_file("params_file", value["params_file"]),
        *(find_robot(name) for name in names),
    ]


def enclave_arguments(value, node):
    """Return the words that give a process its enclave, if there are enclaves."""
    enclave = value["enclave"].rstrip("/")
    return ["--enclave", f"{enclave}/{node}"] if enclave else []


def ros_arguments(value, node):
    """Return the words that only ROS reads: severity, and the node's enclave."""
    return ["--log-level", value["log_level"], *enclave_arguments(value, node)]


def camera_remappings(camera):
    """Return the remappings of one image topic, or of name=topic,name=topic."""
    if not camera:
        return []
    pairs = [part.strip().rpartition("=") for part in camera.split(",")]
    if len(pairs) > 1 and not all(name for name, _, _ in pairs):
        raise RuntimeError(
            f"camera: got {camera!r}; expected one topic, or name=topic,name=topic; "
            "fix: camera:=front=/front/image,wrist=/wrist/image"
        )
    remappings = []
    for name, _, topic in pairs:
        inner = f"~/{name}/image" if name else "~/image"
        # The only camera of a policy is on ~/image, whatever its name.
        for inside in (inner, "~/image") if len(pairs) == 1 and name else (inner,):
            remappings.append((inside, topic))
            remappings.append((f"{inside}/compressed", topic.rstrip("/") + "/compressed"))
    return remappings


def refuse_container(value, flag):
    """Refuse what would leave a container without its driver, or the launch without its keys.

    A container's driver is loaded once, by a node of the launch process in the enclave /. To load
    it again after a respawn is no remedy: the container that died stays on the graph for its
    lease, and the request may go to that one.
    """
    for given, name, why in (
        (value["enclave"], "an enclave", "a container is loaded by a node that has none"),
        (flag["use_respawn"], "use_respawn", "a container that is started again stays empty"),
    ):
        if given:
            raise RuntimeError(
                f"camera_plugin: got {value['camera_plugin']!r} with {name}; expected a driver in "
                f"a process of its own ({why}); fix: camera_executable:= instead, or start the "
                "driver by a launch file of yours"
            )


def camera_node(value, flag):
    """Return the camera driver, with the profile that lets its large pictures through."""
    package, plugin = value["camera_package"], value["camera_plugin"]
    if not (package or plugin or value["camera_executable"]):
        return []
    if not package or bool(plugin) == bool(value["camera_executable"]):
        raise RuntimeError(
            f"camera driver: got camera_package {package!r}, camera_executable "
            f"{value['camera_executable']!r}, camera_plugin {plugin!r}; expected a package and one "
            "of the others; fix: camera_package:=usb_cam camera_executable:=usb_cam_node_exe"
        )
    if plugin:
        refuse_container(value, flag)
    params = value["camera_params"]
    files = [find_file("camera_params", params)] if params else []
    driver = {
        "package": package,
        "name": value["camera_name"],
        "namespace": value["namespace"],
        "parameters": [*files, {"use_sim_time": flag["use_sim_time"]}],
    }
    process = {
        "additional_env": dict.fromkeys(PROFILE_VARIABLES, str(SHARE / CAMERA_PROFILE)),
        "respawn": flag["use_respawn"],
        "output": "screen",
    }
    if plugin:
        return [
            ComposableNodeContainer(
                package="rclcpp_components",
                executable="component_container",
                name=f"{value['camera_name']}_container",
                namespace=value["namespace"],
                composable_node_descriptions=[ComposableNode(plugin=plugin, **driver)],
                **process,
            )
        ]
    return [
        Node(
            executable=value["camera_executable"],
            ros_arguments=enclave_arguments(value, value["camera_name"]),
            **driver,
            **process,
        )
    ]


def refuse_idle(value, flag):
    """Refuse an argument of what is not started: somebody would rely on it."""
    driven = bool(value["camera_package"])
    for name, started, fix in (
        ("joy", flag["joystick"], "joystick:=true, or leave joy:= out"),
        ("camera_params", driven, "camera_package:= and camera_executable:=, or leave it out"),
    ):
        if value[name] and not started:
            raise RuntimeError(
                f"{name}: got {value[name]!r}, and nothing is started that reads it; expected it "
                f"beside what it is for; fix: {fix}"
            )


def watchdog_node(value, flag):
    """Return the process that stops the arm when the policy's cannot."""
    return Node(
        package="vla_align_ros",
        executable="watchdog_node",
        name="watchdog_node",
        namespace=value["namespace"],
        parameters=[*parameter_files(value), {"use_sim_time": flag["use_sim_time"]}],
        remappings=[
            ("~/delta_twist_cmds", value["delta_twist_cmds"] or "policy_node/delta_twist_cmds"),
            ("~/heartbeat", "policy_node/heartbeat"),
            ("~/emergency_stop", "policy_node/emergency_stop"),
            ("~/watched", "policy_node/watched"),
        ],
        ros_arguments=ros_arguments(value, "watchdog_node"),
        respawn=flag["use_respawn"],
        output="screen",
    )


def policy_node(value, flag):
    """Return the lifecycle node; it starts itself, so that it also does after a respawn.

    Not by LifecycleNode, whose events nobody uses here: it makes a node of the launch process
    itself, for which config/sros2 has no keys.
    """
    remappings = [(inner, value[name]) for name, inner in TOPICS.items() if value[name]]
    transport = value["image_transport"]
    return Node(
        package="vla_align_ros",
        executable="policy_node",
        name="policy_node",
        namespace=value["namespace"],
        parameters=[
            *parameter_files(value),
            {
                "bundle": os.path.expanduser(value["bundle"]),
                "autostart": flag["autostart"],
                "use_sim_time": flag["use_sim_time"],
            },
            *([{"image_transport": transport}] if transport else []),
            *([] if flag["watchdog"] else [{"watchdog_timeout_s": 0.0}]),
        ],
        remappings=[*remappings, *camera_remappings(value["camera"])],
        ros_arguments=ros_arguments(value, "policy_node"),
        respawn=flag["use_respawn"],
        respawn_delay=2.0,
        output="screen",
    )


def joystick_node(value, flag):
    """Return the process that turns a joystick's button into a stop."""
    return Node(
        package="vla_align_ros",
        executable="joystick_stop",
        name="joystick_stop",
        namespace=value["namespace"],
        parameters=[
            find_file("params_file", value["params_file"]),
            {"use_sim_time": flag["use_sim_time"]},
        ],
        remappings=[("joy", value["joy"])] if value["joy"] else [],
        ros_arguments=ros_arguments(value, "joystick_stop"),
        respawn=flag["use_respawn"],
        output="screen",
    )


def start(context):
    """Start the nodes with what the arguments say."""
    value = {
        argument.name: LaunchConfiguration(argument.name).perform(context)
        for argument in arguments()
    }
    flag = {name: read_flag(name, value[name]) for name in FLAGS}
    refuse_idle(value, flag)
    return [
        *camera_node(value, flag),
        *([watchdog_node(value, flag)] if flag["watchdog"] else []),
        *([joystick_node(value, flag)] if flag["joystick"] else []),
        policy_node(value, flag),
    ]


def generate_launch_description():
    """Return the description that ros2 launch runs."""
    return LaunchDescription([*arguments(), OpaqueFunction(function=start)])
