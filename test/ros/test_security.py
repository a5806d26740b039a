"""config/sros2 enforced: the arm can be used by it, and what it does not allow does not happen.

Skipped where the middleware is built without security (the wheels' is), or SROS2 is not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rclpy
from ros_graph import ROOT, WIDOWX, Probe
from tiny_policy import CARROT

Start = Callable[..., subprocess.Popen[str]]
POLICY = ROOT / "config" / "sros2" / "policy.xml"
OWN, PROBE = "/vla_align_ros/", "/probe"
BEGIN = (
    f"import rclpy; rclpy.init(args=['--ros-args', '--enclave', {PROBE!r}]); rclpy.create_node('a')"
)
# What Fast DDS's and Cyclone DDS's rmw say where they are built without.
WITHOUT = ("-DSECURITY=ON", "does not have security support")
WORDS, SPEED = "put the plate on the carrot", 0.77
# Publishes on two topics of the policy for two seconds, as far as it may, once somebody listens.
INTRUDE = f"""
import sys, time, rclpy
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import String
rclpy.init(args=["--ros-args", *sys.argv[1:]])
node, publishers = rclpy.create_node("say"), []
for kind, topic in ((String, "instruction"), (TwistStamped, "delta_twist_cmds")):
    try:
        publishers.append((kind, node.create_publisher(kind, f"/policy_node/{{topic}}", 1)))
    except Exception as error:
        print("refused", topic, error)
words, twist = String(data={WORDS!r}), TwistStamped()
twist.twist.linear.x = {SPEED!r}
end_s = time.monotonic() + 8.0
while not all(p.get_subscription_count() for _, p in publishers) and time.monotonic() < end_s:
    time.sleep(0.1)
for _ in range(20):
    for kind, publisher in publishers:
        publisher.publish(words if kind is String else twist)
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and permissions of the package's nodes, and of a probe that may do everything."""
    keys = pytest.importorskip("sros2.keystore", reason="needs SROS2 (the Python package sros2)")
    folder = tmp_path_factory.mktemp("keys") / "keystore"
    keys.create_keystore(folder)
    keys.create_enclave(folder, PROBE)
    for node in ("policy_node", "watchdog_node", "joystick_stop", "operator"):
        keys.create_enclave(folder, f"{OWN}{node}")
        keys.create_permission(folder, f"{OWN}{node}", POLICY)
    begun = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN],
        env={**os.environ, **secure(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if any(reason in begun.stderr for reason in WITHOUT):
        pytest.skip("needs a middleware that is built with security")
    assert begun.returncode == 0, begun.stderr
    return folder


def secure(keystore: Path) -> dict[str, str]:
    return {
        "ROS_SECURITY_KEYSTORE": str(keystore),
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
    }


@pytest.fixture
def probe(
    keystore: Path, monkeypatch: pytest.MonkeyPatch, start_node: Start, tiny_bundle: Path
) -> Iterator[Probe]:
    """A camera and an arm's controller beside a policy, its watchdog and a joystick's node."""
    for name, value in secure(keystore).items():
        monkeypatch.setenv(name, value)
    policy, arm = "/policy_node", ("--params-file", str(WIDOWX))
    start_node(
        *("policy_node", *arm, "-p", f"bundle:={tiny_bundle}", "-p", "autostart:=true"),
        *("-p", "watchdog_timeout_s:=1.0", "--enclave", f"{OWN}policy_node"),
    )
    start_node(
        *("watchdog_node", *arm, "-r", f"~/delta_twist_cmds:={policy}/delta_twist_cmds"),
        *("-r", f"~/heartbeat:={policy}/heartbeat"),
        *("-r", f"~/emergency_stop:={policy}/emergency_stop"),
        *("-r", f"~/watched:={policy}/watched", "--enclave", f"{OWN}watchdog_node"),
    )
    start_node("operating.joystick_stop", "--enclave", f"{OWN}joystick_stop")
    rclpy.init(args=["--ros-args", "--enclave", PROBE])
    probe = Probe()
    probe.wait_for_state("active")
    probe.grey = 128
    yield probe
    probe.close()
    rclpy.try_shutdown()


def run_tool(probe: Probe, tool: str, *words: str) -> tuple[int, str]:
    """A person's tool in the operator's enclave, to its end."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", f"vla_align_ros.ros.operating.{tool}", *words),
            *("--ros-args", "--enclave", f"{OWN}operator"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    assert probe.wait_for(lambda: process.poll() is not None, 60.0), f"{tool} does not end"
    return process.returncode, process.communicate()[0]


def intrude(probe: Probe, *words: str, **variables: str) -> tuple[int, str]:
    """Publish words and a velocity from elsewhere; its exit status, and what was refused to it."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", INTRUDE, *words],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert probe.wait_for(lambda: process.poll() is not None, 30.0)
    return process.returncode, process.communicate()[0]


def arrived(probe: Probe) -> bool:
    """Whether the intruder's velocity arrived at the arm."""
    return any(message.twist.linear.x == SPEED for _, message in probe.twists)


def test_the_arm_is_used_and_stopped_by_what_the_policy_allows(probe: Probe) -> None:
    status, text = run_tool(probe, "say", "--arm", CARROT)
    assert status == 0 and f"policy_node: moving, {CARROT!r}" in text, text
    probe.wait_for_motion()
    status, text = run_tool(probe, "stop_arm")
    assert status == 0, text
    probe.wait_for_hold("stopped")
    count = len(probe.moving())
    probe.spin(0.5)
    assert len(probe.moving()) == count


def test_a_person_may_give_words_and_not_velocities(probe: Probe) -> None:
    status, text = intrude(probe, "--enclave", f"{OWN}operator")
    assert status == 0, text
    assert "refused delta_twist_cmds" in text and "refused instruction" not in text
    assert probe.latest("instruction") == WORDS
    assert not arrived(probe)


def test_what_may_do_everything_is_heard(probe: Probe) -> None:
    """The test's own intruder can be heard: what the others' silence rests on."""
    status, text = intrude(probe, "--enclave", PROBE)
    assert (status, "refused" in text) == (0, False), text
    assert probe.latest("instruction") == WORDS and arrived(probe)


def test_a_process_without_keys_is_not_heard(probe: Probe) -> None:
    status, text = intrude(probe, ROS_SECURITY_ENABLE="false")
    assert (status, "refused" in text) == (0, False), text
    assert probe.latest("instruction") is None and not arrived(probe)


def test_a_process_of_an_unknown_enclave_does_not_start(probe: Probe) -> None:
    status, text = intrude(probe, "--enclave", "/nobody")
    assert status != 0 and "SECURITY ERROR" in text, text
