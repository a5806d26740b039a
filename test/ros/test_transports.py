"""Which processes take shared memory: none of those that have to stop an arm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from ros_graph import ROOT, WIDOWX
from std_msgs.msg import Bool

from vla_align_ros.ros import transports
from vla_align_ros.ros.transports import leave_shared_memory
from vla_align_ros.share import CAMERA_PROFILE, PROFILE_VARIABLES

UDP, LOCALHOST = (str(ROOT / "config" / f"fastdds_udp{end}.xml") for end in ("", "_localhost"))
RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"


@pytest.fixture(autouse=True)
def fast_dds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "get_rmw_implementation_identifier", lambda: "rmw_fastrtps_cpp")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({RANGE: "SUBNET", "ROS_STATIC_PEERS": "10.0.0.2"}, {}),
        ({RANGE: "LOCALHOST"}, {RANGE: "SYSTEM_DEFAULT"}),
        ({"ROS_LOCALHOST_ONLY": "1"}, {RANGE: "SYSTEM_DEFAULT", "ROS_LOCALHOST_ONLY": None}),
    ],
)
def test_udp_alone_in_the_same_range(given: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given)
    leave_shared_memory(environment)
    profile = LOCALHOST if expected else UDP
    wanted = {**given, **dict.fromkeys(PROFILE_VARIABLES, profile), **expected}
    assert environment == {name: value for name, value in wanted.items() if value is not None}


@pytest.mark.parametrize("variable", PROFILE_VARIABLES)
def test_the_cameras_profile_is_left_out_and_a_persons_own_is_not(
    variable: str, tmp_path: Path
) -> None:
    environment = {variable: str(ROOT / "config" / ".." / CAMERA_PROFILE)}
    leave_shared_memory(environment)
    assert environment == dict.fromkeys(PROFILE_VARIABLES, UDP)
    for own in (tmp_path / "own.xml", ROOT / "config" / "fastdds_udp.xml"):
        environment = {variable: str(own)}
        leave_shared_memory(environment)
        assert environment == {variable: str(own)}


@pytest.mark.parametrize(
    "given",
    [{"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, {"ROS2_EASY_MODE": "10.0.0.2"}],
)
def test_transports_that_a_person_chose_are_kept(given: dict[str, str]) -> None:
    environment = dict(given)
    leave_shared_memory(environment)
    assert environment == given


def test_a_profile_in_the_folder_is_a_persons_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT"}
    leave_shared_memory(environment)
    assert environment["FASTRTPS_DEFAULT_PROFILES_FILE"] == UDP
    (tmp_path / "DEFAULT_FASTRTPS_PROFILES.xml").touch()
    environment = {}
    leave_shared_memory(environment)
    assert not environment


def test_static_peers_beside_localhost_and_other_middlewares_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {RANGE: "localhost", "ROS_STATIC_PEERS": "10.0.0.2"}
    environment = dict(given)
    leave_shared_memory(environment)
    assert environment == given
    monkeypatch.setattr(
        transports, "get_rmw_implementation_identifier", lambda: "rmw_cyclonedds_cpp"
    )
    environment = {}
    leave_shared_memory(environment)
    assert not environment


WATCH = [
    *(sys.executable, "-m", "vla_align_ros.ros.watchdog_node", "--ros-args"),
    *("--params-file", str(WIDOWX), "-r", "~/heartbeat:=/policy_node/heartbeat"),
]


@pytest.mark.skipif(
    "fastrtps" not in rclpy.utilities.get_rmw_implementation_identifier(),
    reason="the middleware here is not Fast DDS",
)
@pytest.mark.parametrize(
    ("variables", "shares"),
    [
        ({RANGE: "LOCALHOST"}, False),
        ({RANGE: "LOCALHOST", "FASTRTPS_DEFAULT_PROFILES_FILE": str(ROOT / CAMERA_PROFILE)}, False),
        ({RANGE: "SUBNET"}, False),
        ({"ROS_LOCALHOST_ONLY": "1"}, False),
        ({RANGE: "LOCALHOST", "ROS_STATIC_PEERS": "127.0.0.1"}, True),
    ],
)
def test_the_watchdog_shares_no_memory_and_is_heard_and_hears(
    variables: dict[str, str], shares: bool, ros: None
) -> None:
    """Its diagnostics reach a node with shared memory, which sees it listen to the heartbeat."""
    found: list[dict[str, str]] = []

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "watchdog_node: watchdog":
                found.append({pair.key: pair.value for pair in status.values})

    node = rclpy.create_node("listener")
    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    beat = node.create_publisher(Bool, "/policy_node/heartbeat", 10)
    inherited = {name: value for name, value in os.environ.items() if name != RANGE}
    process = subprocess.Popen(
        WATCH, env={**inherited, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert _spin(node, lambda: bool(found) and beat.get_subscription_count() == 1)
        maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
        assert ("/dev/shm/fast" in maps) is shares
        assert json.loads(found[-1]["shares_memory"].lower()) is shares
    finally:
        process.terminate()
        output = process.communicate(timeout=20)[0].decode()
        node.destroy_node()
    assert ("shares memory through Fast DDS" in output) is shares, output


def _spin(node: rclpy.node.Node, happened: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s and not happened():
        rclpy.spin_once(node, timeout_sec=0.05)
    return happened()
