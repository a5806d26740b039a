"""`vla-align doctor` beside a running policy: what it sees of policy, camera and controller."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import ROOT, WIDOWX, Probe
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Empty

from vla_align_ros.commands.robot_checks import (
    check_bundle,
    check_graph,
    check_profile,
    check_robot,
)
from vla_align_ros.commands.shared_memory import check_left_overs, find_left_overs
from vla_align_ros.ros.graph_check import GraphCheck

Start = Callable[..., subprocess.Popen[str]]
DOCTOR = [sys.executable, "-c", "import sys; from vla_align_ros.cli import main; sys.exit(main())"]


def examine(probe: Probe, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status and findings by name; the camera goes on meanwhile."""
    process = subprocess.Popen(
        [*DOCTOR, "doctor", "--json", *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert probe.wait_for(lambda: process.poll() is not None, 90.0)
    report = json.loads(process.communicate()[0].splitlines()[-1])
    return process.returncode, {finding["name"]: finding for finding in report["findings"]}


def look(probe: Probe, *words: str) -> dict[str, dict[str, Any]]:
    """Findings about the graph alone, by name; the camera goes on meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(check_graph, list(words))
        assert probe.wait_for(future.done, 90.0)
        return {finding.name: asdict(finding) for finding in future.result()}


def test_a_running_policy_is_found_with_its_camera_and_its_controller(
    probe: Probe, start_node: Start, tiny_bundle: Path
) -> None:
    start_node(
        *("policy_node", "--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
        *("-p", "autostart:=true"),
    )
    probe.wait_for_state("active")
    probe.grey = 128
    probe.node.create_subscription(Bool, "/policy_node/heartbeat", print, 1)  # a recorder
    found = look(probe)
    assert found["/policy_node"]["ok"] and "disarmed" in found["/policy_node"]["found"]
    assert not found["watchdog"]["ok"] and "watchdog:=true" in found["watchdog"]["fix"]
    assert "/policy_node/image" in found, found
    camera = found["/policy_node/image"]
    assert camera["ok"] and "64x48 rgb8" in camera["found"], camera
    assert 10 < float(camera["found"].split(" Hz")[0]) < 40
    twists = found["/policy_node/delta_twist_cmds"]
    assert twists["ok"] and twists["found"] == "/probe listens"

    probe.grey = None
    found = look(probe, "--policy", "policy_node")
    assert found["/policy_node"]["ok"], "the policy itself is well"
    assert not found["/policy_node/image"]["ok"]
    assert "nothing arrives" in found["/policy_node/image"]["found"]


def test_a_policy_is_seen_beside_another_node_of_its_name(
    probe: Probe, start_node: Start, tiny_bundle: Path
) -> None:
    namesakes = [rclpy.create_node("policy_node") for _ in range(2)]
    try:
        start_node(
            *("policy_node", "--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
            *("-p", "autostart:=true"),
        )
        probe.wait_for_state("active")
        probe.grey = 128
        found = look(probe)
    finally:
        for namesake in namesakes:
            namesake.destroy_node()
    assert found["/policy_node"]["ok"] and found["/policy_node/image"]["ok"], found
    assert found["/policy_node/delta_twist_cmds"]["ok"], found


def test_a_camera_is_held_against_the_clock_of_its_policy(probe: Probe) -> None:
    simulated = Parameter("use_sim_time", value=True)
    policy = rclpy.create_node("policy_node", parameter_overrides=[simulated])
    asked = ["--policy", "policy_node", "--camera", "/front/image"]
    found = look(probe, *asked)
    assert "nobody publishes the time" in found["/clock"]["found"], found

    clock = probe.node.create_publisher(Clock, "/clock", 1)
    front = probe.node.create_publisher(Image, "/front/image", 1)
    begun_s = time.monotonic()

    def publish() -> None:
        now = Duration(nanoseconds=int(1e9 * (100.0 + time.monotonic() - begun_s))).to_msg()
        stamp = Time(sec=now.sec, nanosec=now.nanosec)
        clock.publish(Clock(clock=stamp))
        image = Image(height=1, width=1, encoding="mono8", step=1, data=[0])
        image.header.stamp = stamp
        front.publish(image)

    probe.node.create_timer(0.05, publish)
    found = look(probe, *asked)
    assert found["/front/image"]["ok"] and "/clock" not in found, found
    policy.destroy_node()


def test_what_was_asked_for_and_is_not_there_fails_with_its_fix(probe: Probe) -> None:
    probe.grey = 128
    status, found = examine(
        probe, "--policy", "nobody", "--camera", "/front/image", "--commands", "/servo/twist"
    )
    assert status == 1
    assert not found["/nobody"]["ok"] and "nothing heard" in found["/nobody"]["found"]
    assert "/policy_node/image" in found["/front/image"]["fix"], "what there is instead"
    assert "controller" in found["/servo/twist"]["fix"]


def test_a_policys_own_picture_is_no_camera_to_take_instead(ros: None) -> None:
    node, doctor = rclpy.create_node("policy_node"), rclpy.create_node("doctor")
    for topic in ("/policy_node/sight/attention", "/wrist/image"):
        node.create_publisher(Image, topic, 1)
    check = GraphCheck(doctor, 1.0)
    assert check._patience.wait(lambda: doctor.count_publishers("/wrist/image") == 1, 10.0)
    assert check._patience.wait(
        lambda: doctor.count_publishers("/policy_node/sight/attention") == 1, 10.0
    )
    (found,) = check._check_cameras(["/front/image"])
    assert found["fix"] == "start the driver; with pictures here: /wrist/image"
    for each in (node, doctor):
        each.destroy_node()


def test_a_name_that_nothing_can_have_fails_alone(ros: None) -> None:
    words = ["--policy", "left-arm/policy_node", "--camera", "a b", "front/image"]
    found = {finding.name: finding for finding in check_graph(words, 1.0)}
    for name in ("/left-arm/policy_node", "/a b"):
        assert "must not contain" in found[name].found and not found[name].ok, found
    assert found["/front/image"].found == "nobody publishes pictures"


def test_two_policies_on_one_controller_are_told_by_their_full_names(ros: None) -> None:
    topic = "/servo_node/delta_twist_cmds"
    arms = [rclpy.create_node("policy_node", namespace=side) for side in ("left", "right")]
    others = [rclpy.create_node(name) for name in ("servo_node", "watchdog_node", "doctor")]
    others[0].create_subscription(TwistStamped, topic, lambda _: None, 1)
    others[1].create_publisher(TwistStamped, topic, 1)
    arms[0].create_publisher(TwistStamped, topic, 1)
    check = GraphCheck(others[-1], 1.0)

    def find(publishers: int) -> dict[str, Any]:
        assert check._patience.wait(lambda: others[-1].count_publishers(topic) == publishers, 10.0)
        return check._check_controller(topic)

    alone = find(2)
    assert alone["ok"] and alone["found"] == "/servo_node listens"
    arms[1].create_publisher(TwistStamped, topic, 1)
    both = find(3)
    assert not both["ok"]
    assert "/right/policy_node publishes beside /left/policy_node" in both["found"]
    for node in (*arms, *others):
        node.destroy_node()


def test_two_policies_of_one_name_on_one_controller_are_told(ros: None) -> None:
    topic = "/servo_node/delta_twist_cmds"
    arms = [rclpy.create_node("policy_node") for _ in range(2)]
    others = [rclpy.create_node(name) for name in ("servo_node", "doctor")]
    others[0].create_subscription(TwistStamped, topic, lambda _: None, 1)
    for arm in arms:
        arm.create_publisher(TwistStamped, topic, 1)
    check = GraphCheck(others[-1], 1.0)
    assert check._patience.wait(lambda: others[-1].count_publishers(topic) == 2, 10.0)
    found = check._check_controller(topic)
    assert not found["ok"] and "/policy_node publishes more than once" in found["found"]
    for node in (*arms, *others):
        node.destroy_node()


def test_a_watchdog_of_another_name_is_no_controller_and_no_second_publisher(ros: None) -> None:
    topic = "/servo_node/delta_twist_cmds"
    arm, watchdog, servo, doctor = (
        rclpy.create_node(name) for name in ("policy_node", "left_watchdog", "servo", "doctor")
    )
    arm.create_publisher(TwistStamped, topic, 1)
    watchdog.create_publisher(TwistStamped, topic, 1)
    watchdog.create_publisher(Empty, "/policy_node/watched", 1)
    watchdog.create_subscription(TwistStamped, topic, lambda _: None, 1)
    check = GraphCheck(doctor, 1.0)

    def find(subscribers: int) -> dict[str, Any]:
        publishers = {topic: 2, "/policy_node/watched": 1}
        assert check._patience.wait(
            lambda: all(doctor.count_publishers(name) == n for name, n in publishers.items()), 10.0
        )
        assert check._patience.wait(lambda: doctor.count_subscribers(topic) == subscribers, 10.0)
        return check._check_controller(topic)

    assert find(1)["found"] == "no controller listens"
    servo.create_subscription(TwistStamped, topic, lambda _: None, 1)
    there = find(2)
    assert there["ok"] and there["found"] == "/servo listens", there
    for node in (arm, watchdog, servo, doctor):
        node.destroy_node()


def test_a_controller_whose_qos_does_not_fit_is_no_listener(ros: None) -> None:
    topic = "/servo_node/delta_twist_cmds"
    nodes = [rclpy.create_node(name) for name in ("policy_node", "servo_node", "doctor")]
    nodes[0].create_publisher(TwistStamped, topic, 1)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    nodes[1].create_subscription(TwistStamped, topic, lambda _: None, latched)
    check = GraphCheck(nodes[-1], 1.0)

    def find(subscribers: int) -> dict[str, Any]:
        there = nodes[-1].count_subscribers
        assert check._patience.wait(lambda: there(topic) == subscribers, 10.0)
        assert check._patience.wait(lambda: nodes[-1].count_publishers(topic) == 1, 10.0)
        return check._check_controller(topic)

    misfit = find(1)
    assert not misfit["ok"] and "sent nothing" in misfit["found"], misfit
    assert "transient local subscription" in misfit["found"]
    nodes[1].create_subscription(TwistStamped, topic, lambda _: None, 1)
    assert find(2)["ok"]
    for node in nodes:
        node.destroy_node()


def test_the_profile_of_this_shell_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    assert not check_profile().ok and "fastdds_shm.xml" in check_profile().fix
    shipped = ROOT / "config" / "fastdds_shm.xml"
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(shipped))
    assert check_profile().ok and "16384 KiB" in check_profile().found
    small = tmp_path / "small.xml"
    small.write_text(shipped.read_text().replace("16777216", "524288"))
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(small))
    assert not check_profile().ok
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(tmp_path / "none.xml"))
    assert not check_profile().ok and "cannot be read" in check_profile().found
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    assert check_profile().ok


def test_the_segments_of_a_killed_node_are_told_and_those_of_a_running_one_are_not() -> None:
    script = (
        "import rclpy; rclpy.init(); node = rclpy.create_node('doomed'); print('up', flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}; input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    segments = {
        Path(line.split()[-1]) for line in maps.splitlines() if "/dev/shm/fastrtps_" in line
    }
    assert segments, "Fast DDS over shared memory"
    assert not segments & set(find_left_overs())
    process.kill()
    process.communicate()
    left = segments & set(find_left_overs())
    assert left and not check_left_overs().ok
    for path in left:  # and away with them
        for name in (path, *path.parent.glob(f"{path.name}_?l")):
            name.unlink(missing_ok=True)


def test_bundle_engine_and_robot_are_held_against_each_other(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    findings, bundle = check_bundle(tiny_bundle)
    assert [(f.name, f.ok) for f in findings] == [("bundle", True), ("engine", True)]
    assert all(f.ok for f in check_robot("widowx_sim", bundle))
    other = tmp_path / "arm.yaml"
    other.write_text(WIDOWX.read_text().replace("command_frame: base_link", "command_frame: world"))
    assert [f.name for f in check_robot(str(other), bundle) if not f.ok] == ["command_frame"]
    other.write_text("/**: {}")
    assert not check_robot(str(other), bundle)[0].ok
    findings, bundle = check_bundle(tmp_path)
    assert bundle is None and not findings[0].ok


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [
        ("max_linear_m_s: 0.4", "max_linear_m_s: 1", "expecting type 'DOUBLE'"),
        ("hold_factor: 3.0", "hold_factr: 3.0", "expected arm.hold_factor"),
        ("hold_factor: 3.0", "hold_factor: 0.5", "out of range"),
        ("workspace_max_m:", "name: other #", "one corner only"),
        ("workspace_min_m: [0.10, -0.32, 0.0]", "workspace_min_m: [0.1, 0, 0.0]", "same type"),
    ],
)
def test_a_robots_file_that_the_node_would_refuse_is_a_finding(
    tmp_path: Path, written: str, instead: str, told: str
) -> None:
    file = tmp_path / "arm.yaml"
    text = WIDOWX.read_text()
    assert written in text
    file.write_text(text.replace("name: widowx_sim\n", "").replace(written, instead))
    (finding,) = check_robot(str(file), None)
    assert not finding.ok and told in finding.found, finding
