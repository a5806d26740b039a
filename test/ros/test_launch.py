"""policy.launch.py and two_arms.launch.py start real processes, by ROS's own launch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from ros_graph import LATCHED, ROOT
from std_msgs.msg import String
from test_package import NAME, copy_sources, run

pytest.importorskip("launch_ros", reason="ROS 2's launch has no wheel: source a ROS 2 to run this")

START_S = 60.0
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
source = PythonLaunchDescriptionSource(sys.argv[1])
pairs = [word.split(":=", 1) for word in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=pairs)])
)
sys.exit(service.run())
"""
ARM = """
/**:
  ros__parameters:
    arm:
      max_linear_m_s: 0.0625
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a workspace that colcon built."""
    folder = tmp_path_factory.mktemp("workspace")
    copy_sources(folder / "src" / NAME)
    run(Path(sysconfig.get_path("scripts")) / "colcon", "build", cwd=folder)
    prefix = folder / "install" / NAME
    packages = next(prefix.rglob("site-packages"))
    return {
        **os.environ,
        "AMENT_PREFIX_PATH": f"{prefix}:{os.environ.get('AMENT_PREFIX_PATH', '')}",
        "PYTHONPATH": f"{packages}:{os.environ.get('PYTHONPATH', '')}",
        "ROS_LOG_DIR": str(folder / "log"),
        "ROS_HOME": str(folder),
    }


@pytest.fixture
def launch(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running = []

    def start(file: str, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(ROOT / "launch" / file), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture
def node(ros: None) -> Iterator[Node]:
    node = rclpy.create_node("launch_probe")
    yield node
    node.destroy_node()


def wait_for(node: Node, happened: Callable[[], bool]) -> bool:
    end_s = node.get_clock().now().nanoseconds * 1e-9 + START_S
    while not happened():
        if node.get_clock().now().nanoseconds * 1e-9 > end_s:
            return False
        rclpy.spin_once(node, timeout_sec=0.1)
    return True


def states_of(node: Node, *names: str) -> dict[str, str]:
    """Follows `~/status` of several policies; their states, as they come."""
    states: dict[str, str] = {}

    def listen(name: str) -> None:
        def take(message: String) -> None:
            states[name] = json.loads(message.data)["state"]

        node.create_subscription(String, f"{name}/status", take, LATCHED)

    for name in names:
        listen(name)
    return states


def read_parameter(node: Node, name: str, parameter: str) -> object:
    client = node.create_client(GetParameters, f"{name}/get_parameters")
    assert wait_for(node, client.service_is_ready)
    for _ in range(10):
        future = client.call_async(GetParameters.Request(names=[parameter]))
        if wait_for(node, future.done):
            value = future.result().values[0]
            return value.double_value if value.type == 3 else value.string_value
    raise AssertionError("no answer")


def test_two_arms_each_in_its_namespace_with_its_own_limits(
    launch: Callable[..., subprocess.Popen[str]], node: Node, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "left.yaml").write_text(ARM)
    (tmp_path / "nodes.yaml").write_text("/**:\n  ros__parameters:\n    loss_s: 0.75\n")
    states = states_of(node, "/left/policy_node", "/right/policy_node")
    launch(
        "two_arms.launch.py",
        *("robot:=widowx_sim", f"left_arm:={tmp_path}/left.yaml", f"bundle:={tiny_bundle}"),
        *("camera:=front/image", "right_delta_twist_cmds:=/other/servo", "joystick:=true"),
        f"params_file:={tmp_path}/nodes.yaml",
    )
    assert wait_for(node, lambda: list(states.values()) == ["active", "active"]), states
    limits = [
        read_parameter(node, f"/{side}/policy_node", "arm.max_linear_m_s")
        for side in ("left", "right")
    ]
    assert limits[0] == 0.0625 and limits[1] != 0.0625
    for side, topic in (("left", "/left/policy_node/delta_twist_cmds"), ("right", "/other/servo")):
        publishers = {info.node_namespace for info in node.get_publishers_info_by_topic(topic)}
        assert publishers == {f"/{side}"}, topic
        assert node.count_subscribers(f"/{side}/front/image") == 1
        names = {
            name for name, space in node.get_node_names_and_namespaces() if space == f"/{side}"
        }
        assert names == {"policy_node", "watchdog_node", "joystick_stop"}
        assert read_parameter(node, f"/{side}/joystick_stop", "loss_s") == 0.75
    # A node of the launch process would need keys of its own where security is enforced.
    assert not [name for name in node.get_node_names() if name.startswith("launch_ros_")]


def test_a_camera_driver_starts_with_the_profile(
    launch: Callable[..., subprocess.Popen[str]], node: Node, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Any executable serves as a driver here: what counts is its environment."""
    states = states_of(node, "/policy_node")
    launch(
        "policy.launch.py",
        *(f"bundle:={tiny_bundle}", "arm:=widowx_sim", "watchdog:=false"),
        *(f"camera_package:={NAME}", "camera_executable:=joystick_stop", "camera_name:=eye"),
    )
    assert wait_for(node, lambda: states.get("/policy_node") == "active")
    assert wait_for(node, lambda: "eye" in node.get_node_names())
    environments = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/environ")
        if os.access(path, os.R_OK) and b"joystick_stop" in (path.parent / "cmdline").read_bytes()
    ]
    assert any(b"config/fastdds_shm.xml" in text for text in environments)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("robot:=no_such_robot",), "expected one of franka_crisp"),
        (("camera_package:=usb_cam",), "expected a package and one of the others"),
        (("camera:=a,b",), "name=topic,name=topic"),
        (("watchdog:=ture",), "expected true, 1, yes or false"),
        (("params_file:=/no/such.yaml",), "expected a parameter file"),
        (
            ("camera_package:=usb_cam", "camera_plugin:=usb_cam::UsbCamNode", "use_respawn:=true"),
            "expected a driver in a process of its own",
        ),
    ],
)
def test_a_wrong_argument_is_told(
    launch: Callable[..., subprocess.Popen[str]], words: tuple[str, ...], reason: str
) -> None:
    process = launch("policy.launch.py", *words)
    text = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert reason in text
