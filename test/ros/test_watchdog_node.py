"""Runs watchdog_node as a process, beside a stand-in for the policy and beside the real node."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from ros_graph import BEST_EFFORT, LATCHED, RELIABLE, WIDOWX, Probe, values_of
from std_msgs.msg import Bool, Empty, String
from std_srvs.srv import Trigger
from tiny_policy import CARROT

from vla_align_ros.ros.operating.client import find_policies

Start = Callable[..., subprocess.Popen[str]]
PERIOD_S = 0.05
LIMIT_S = 0.12  # two periods of 20 Hz and 20 ms
WATCHED_S = 0.5
LATE_S = 0.1  # what a busy machine may add
REMAPS = (
    *("-r", "~/delta_twist_cmds:=/policy_node/delta_twist_cmds"),
    *("-r", "~/heartbeat:=/policy_node/heartbeat"),
    *("-r", "~/emergency_stop:=/policy_node/emergency_stop"),
    *("-r", "~/watched:=/policy_node/watched"),
)


class Sender:
    """Plays the policy: commands and heartbeats at 20 Hz while it drives."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("sender")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        make, listen = self.node.create_publisher, self.node.create_subscription
        self._twist = make(TwistStamped, "/policy_node/delta_twist_cmds", RELIABLE)
        self._beat = make(Bool, "/policy_node/heartbeat", RELIABLE)
        self.zeros: list[float] = []
        self.status: list[dict[str, Any]] = []
        self.stops: list[Empty] = []
        listen(TwistStamped, "/policy_node/delta_twist_cmds", self._on_twist, RELIABLE)
        listen(Empty, "/policy_node/emergency_stop", self.stops.append, RELIABLE)
        listen(
            String,
            "/watchdog_node/status",
            lambda message: self.status.append(json.loads(message.data)),
            LATCHED,
        )

    def _on_twist(self, message: TwistStamped, info: Mapping[str, int]) -> None:
        if not any(values_of(message)):
            self.zeros.append(1e-9 * info["received_timestamp"])

    def spin(self, seconds: float) -> None:
        self.wait_for(lambda: False, seconds)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and not happened():
            self.executor.spin_once(timeout_sec=0.005)
        return happened()

    def drive(self, times: int = 10, *, speed: float = 0.1, beat: bool | None = True) -> float:
        """Send commands at 20 Hz; returns when the last one left, in system seconds."""
        for _ in range(times):
            message = TwistStamped()
            message.header.frame_id = "base_link"
            message.twist.linear.x = speed
            self._twist.publish(message)
            if beat is not None:
                self._beat.publish(Bool(data=beat))
            sent_s = time.time()
            self.spin(0.05)
        return sent_s

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()


@pytest.fixture
def sender(ros: None) -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.close()


@pytest.fixture
def start_watchdog(start_node: Start, sender: Sender) -> Start:
    def start(*extra: str) -> subprocess.Popen[str]:
        process = start_node("watchdog_node", "--params-file", str(WIDOWX), *REMAPS, *extra)
        assert sender.wait_for(lambda: bool(sender.status), 60.0)
        assert sender.wait_for(lambda: sender._twist.get_subscription_count() == 2)
        assert sender.wait_for(lambda: sender._beat.get_subscription_count() == 1)
        return process

    return start


def test_sends_one_zero_when_a_moving_node_falls_silent(
    sender: Sender, start_watchdog: Start
) -> None:
    start_watchdog()
    sender.drive(20)
    assert not sender.zeros, "stopped an arm that was commanded in time"
    last_s = sender.drive(5)
    assert sender.wait_for(lambda: bool(sender.zeros), 2.0)
    assert LIMIT_S - 0.005 <= sender.zeros[0] - last_s <= LIMIT_S + LATE_S
    sender.spin(0.5)
    assert len(sender.zeros) == 1, "one zero, then silence"
    assert sender.status[-1]["reason"] == "policy_silent"
    assert sender.status[-1]["tripped"] is True
    assert not sender.stops, "latches the policy's stop only if told to"


def test_a_watchdog_of_another_rate_says_so(sender: Sender, start_watchdog: Start) -> None:
    told: list[str] = []
    sender.node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda message: told.append(message.status[0].message), 10
    )
    start_watchdog("-p", "command_rate_hz:=5.0")
    for _ in range(8):
        sender.drive(10)
        if any("command_rate_hz is 5 here" in text for text in told):
            break
    assert any("command_rate_hz is 5 here, so its zero would come late" in text for text in told)


def test_leaves_an_arm_alone_that_was_sent_its_zero(sender: Sender, start_watchdog: Start) -> None:
    start_watchdog()
    sender.drive(5)
    sender.drive(1, speed=0.0, beat=False)
    sender.zeros.clear()
    sender.spin(0.5)
    assert not sender.zeros
    assert sender.status[-1]["tripped"] is False


def test_sends_the_zero_that_a_living_node_forgot_and_can_latch_its_stop(
    sender: Sender, start_watchdog: Start
) -> None:
    start_watchdog("-p", "stop_policy:=true")
    sender.drive(5)
    for _ in range(6):
        sender._beat.publish(Bool(data=False))
        sender.spin(0.05)
    assert len(sender.zeros) == 1
    assert sender.wait_for(lambda: bool(sender.stops), 1.0)
    assert sender.status[-1]["reason"] == "commands_ceased"


def test_latches_the_stop_of_a_policy_that_comes_back(
    sender: Sender, start_watchdog: Start
) -> None:
    start_watchdog("-p", "stop_policy:=true")
    sender.drive(5)
    assert sender.wait_for(lambda: bool(sender.stops), 2.0)
    sender.spin(0.3)
    sender.stops.clear()
    sender.drive(4, speed=0.0, beat=False)
    assert sender.wait_for(lambda: len(sender.stops) > 1), "one may come before it is heard"
    sender.drive(30, speed=0.0, beat=False)
    sender.stops.clear()
    sender.drive(4, speed=0.0, beat=False)
    assert not sender.stops, "reset and armed, it may move again"


def test_does_not_stop_what_comes_back_after_a_reset(sender: Sender, start_watchdog: Start) -> None:
    start_watchdog("-p", "stop_policy:=true")
    sender.drive(5)
    assert sender.wait_for(lambda: bool(sender.stops), 2.0)
    reset = sender.node.create_client(Trigger, "/watchdog_node/reset")
    assert sender.wait_for(reset.service_is_ready)
    futures = []
    for _ in range(5):  # a server is seen before its answers find the way
        futures.append(reset.call_async(Trigger.Request()))
        if sender.wait_for(lambda: any(future.done() for future in futures), 2.0):
            break
    sender.stops.clear()
    sender.drive(4, speed=0.0, beat=False)
    assert not sender.stops


def test_without_stop_policy_it_is_no_policy_to_the_operators_tools(
    sender: Sender, start_node: Start
) -> None:
    """Nobody remapped its topics: `~/emergency_stop` beside `~/status` is what a policy has."""
    start_node("watchdog_node", "--params-file", str(WIDOWX))
    assert sender.wait_for(lambda: bool(sender.status), 60.0)
    assert find_policies(sender.node) == []


def test_leaves_a_person_alone_who_drives_while_the_policy_stands(
    sender: Sender, start_watchdog: Start
) -> None:
    """Keyboards send one twist for each key, on the topic that the policy has too."""
    start_watchdog("-p", "stop_policy:=true")
    sender.drive(5)
    sender.drive(1, speed=0.0, beat=False)
    sender.zeros.clear()
    for _ in range(4):
        sender.drive(1, beat=None)
        for _ in range(6):
            sender._beat.publish(Bool(data=False))
            sender.spin(0.05)
    assert not sender.zeros and not sender.stops
    assert sender.status[-1]["tripped"] is False


def test_refuses_to_watch_without_the_robots_file(start_node: Start) -> None:
    process = start_node("watchdog_node")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "arm.command_frame is not set" in output
    assert "Traceback" not in output


@pytest.fixture
def start_policy(start_node: Start, tiny_bundle: Path) -> Start:
    def start() -> subprocess.Popen[str]:
        return start_node(
            "policy_node",
            *("--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
            *("-p", "start_armed:=true", "-p", "autostart:=true"),
            *("-p", f"watchdog_timeout_s:={WATCHED_S}"),
        )

    return start


@pytest.fixture
def policy(start_policy: Start, probe: Probe) -> Iterator[subprocess.Popen[str]]:
    """A policy that was told what to do and would move, were it watched."""
    policy = start_policy()
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_hold("unwatched")
    yield policy
    policy.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_stops_the_arm_of_a_policy_that_dies_or_hangs(
    probe: Probe, policy: subprocess.Popen[str], start_node: Start, number: signal.Signals
) -> None:
    start_node("watchdog_node", "--params-file", str(WIDOWX), *REMAPS)
    probe.wait_for_motion()
    policy.send_signal(number)
    killed_s = probe.now_s()
    # By the middleware's stamps: the probe itself may wait for a lock of the stopped process.
    assert probe.wait_for(lambda: not any(values_of(probe.twists[-1][1])), 6.0)
    assert probe.twists[-1][0] - killed_s <= LIMIT_S + LATE_S
    count = len(probe.twists)
    probe.spin(0.5)
    assert len(probe.twists) == count, "one zero, then silence"


def test_a_policy_that_died_and_starts_armed_stands_until_a_person_resets_it(
    probe: Probe, policy: subprocess.Popen[str], start_node: Start, start_policy: Start
) -> None:
    start_node(*("watchdog_node", "--params-file", str(WIDOWX), *REMAPS, "-p", "stop_policy:=true"))
    probe.wait_for_motion()
    policy.send_signal(signal.SIGKILL)
    policy.wait()
    probe.spin(1.0)
    probe.status.clear()
    start_policy()
    probe.wait_for_state("active")
    assert probe.wait_for(lambda: probe.latest("latched_stop") == "by ~/emergency_stop", 5.0)
    probe.twists.clear()
    probe.say(CARROT)
    probe.spin(1.5)
    assert not probe.twists and probe.latest("hold_reason") == "stopped"


def test_a_policy_moves_nothing_before_it_is_watched_nor_after(
    probe: Probe, policy: subprocess.Popen[str], start_node: Start
) -> None:
    probe.spin(1.0)
    assert not probe.twists and probe.latest("hold_reason") == "unwatched"
    watchdog = start_node("watchdog_node", "--params-file", str(WIDOWX), *REMAPS)
    probe.wait_for_motion()
    watchdog.send_signal(signal.SIGSTOP)
    stopped_s = probe.now_s()
    assert probe.wait_for(lambda: not any(values_of(probe.twists[-1][1])), 3.0)
    assert probe.twists[-1][0] - stopped_s <= WATCHED_S + PERIOD_S + LATE_S
    assert probe.wait_for(lambda: probe.latest("last_stop") is not None)
    assert probe.latest("last_stop")["reason"] == "unwatched"
    watchdog.send_signal(signal.SIGCONT)
    count = len(probe.twists)
    assert probe.wait_for(lambda: len(probe.twists) > count + 5), "moves on when it is watched"


def test_does_not_watch_a_policy_whose_commands_it_cannot_hear(
    sender: Sender, start_watchdog: Start
) -> None:
    watched: list[Empty] = []
    sender.node.create_subscription(Empty, "/policy_node/watched", watched.append, RELIABLE)
    person = rclpy.create_node("person")
    deaf = [
        node.create_publisher(TwistStamped, "/policy_node/delta_twist_cmds", BEST_EFFORT)
        for node in (sender.node, person)
    ]
    start_watchdog()
    sender.spin(1.0)
    sender.drive(20, beat=False)
    assert not watched
    sender.node.destroy_publisher(deaf[0])
    for _ in range(10):
        sender.drive(20, beat=False)
        if watched:
            break
    assert watched, "a person's commands may be as they like"
    person.destroy_node()


def test_does_not_watch_while_nobody_would_hear_its_zero(sender: Sender, start_node: Start) -> None:
    watched: list[Empty] = []
    sender.node.create_subscription(Empty, "/policy_node/watched", watched.append, RELIABLE)
    start_node(
        *("watchdog_node", "--params-file", str(WIDOWX)),
        *("-r", "~/delta_twist_cmds:=/nobodys/delta_twist_cmds", *REMAPS),  # the first one counts
    )
    assert sender.wait_for(lambda: sender._beat.get_subscription_count() == 1, 60.0)
    sender.drive(20, beat=False)
    assert not watched
    sender.node.create_subscription(
        TwistStamped, "/nobodys/delta_twist_cmds", lambda _: None, RELIABLE
    )
    for _ in range(10):
        sender.drive(20, beat=False)
        if watched:
            break
    assert watched
