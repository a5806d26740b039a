"""A running policy's goals on a real action server; skipped where control_msgs is not there."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from ros_graph import RELIABLE, WIDOWX, Probe
from std_msgs.msg import Empty
from tiny_policy import CARROT

GripperCommand: Any = pytest.importorskip(
    "control_msgs.action", reason="needs control_msgs: source a ROS 2 to run this"
).GripperCommand

Start = Callable[..., subprocess.Popen[str]]


class SlowGripper:
    """An action server whose goals take until they are cancelled."""

    def __init__(self) -> None:
        self.accepts_after_s = 0.0
        self.asked = self.started = self.cancelled = 0
        self._end = threading.Event()
        self._node = rclpy.create_node("gripper")
        self._server = ActionServer(
            *(self._node, GripperCommand, "/gripper", self._run),
            callback_group=ReentrantCallbackGroup(),
            goal_callback=self._accept,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )
        self._executor = MultiThreadedExecutor(4)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()

    def _accept(self, _: Any) -> GoalResponse:
        self.asked += 1
        time.sleep(self.accepts_after_s)
        return GoalResponse.ACCEPT

    def _run(self, goal: Any) -> Any:
        self.started += 1
        while not goal.is_cancel_requested and not self._end.wait(0.01):
            pass
        if goal.is_cancel_requested:
            self.cancelled += 1
            goal.canceled()
        else:
            goal.abort()
        return GripperCommand.Result()

    def close(self) -> None:
        self._end.set()
        self._executor.shutdown()
        self._thread.join()
        self._server.destroy()
        self._node.destroy_node()


@pytest.fixture
def gripper(ros: None) -> Iterator[SlowGripper]:
    gripper = SlowGripper()
    yield gripper
    gripper.close()


@pytest.fixture
def policy(
    gripper: SlowGripper, probe: Probe, start_node: Start, tiny_bundle: Path
) -> subprocess.Popen[str]:
    process = start_node(
        *("policy_node", "--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
        *("-p", "autostart:=true", "-p", "start_armed:=true"),
        *("-p", "arm.gripper.interface:=gripper_command", "-p", "arm.gripper.action:=/gripper"),
    )
    probe.wait_for_state("active")
    probe.grey = 128
    return process


def press_emergency_stop(probe: Probe) -> None:
    button = probe.node.create_publisher(Empty, "/policy_node/emergency_stop", RELIABLE)
    assert probe.wait_for(lambda: button.get_subscription_count() > 0)
    button.publish(Empty())


def test_a_stale_picture_leaves_a_grasp_and_a_stop_ends_it(
    probe: Probe, gripper: SlowGripper, policy: subprocess.Popen[str]
) -> None:
    probe.say(CARROT)
    assert probe.wait_for(lambda: gripper.started == 1)
    probe.grey = None
    probe.wait_for_hold("stale_image")
    probe.spin(0.5)
    assert gripper.cancelled == 0
    press_emergency_stop(probe)
    assert probe.wait_for(lambda: gripper.cancelled == 1, 2.0)
    assert gripper.started == 1


def test_a_goal_that_is_accepted_after_the_stop_is_cancelled(
    probe: Probe, gripper: SlowGripper, policy: subprocess.Popen[str]
) -> None:
    gripper.accepts_after_s = 1.5
    probe.say(CARROT)
    assert probe.wait_for(lambda: gripper.asked == 1)
    press_emergency_stop(probe)
    probe.wait_for_hold("stopped")
    assert gripper.started == 0
    assert probe.wait_for(lambda: gripper.cancelled == 1, 5.0)


def test_the_end_of_the_node_ends_its_goals(
    probe: Probe, gripper: SlowGripper, policy: subprocess.Popen[str]
) -> None:
    probe.say(CARROT)
    assert probe.wait_for(lambda: gripper.started == 1)
    probe.spin(0.5)  # until the node has heard that it is accepted
    policy.send_signal(signal.SIGINT)
    assert probe.wait_for(lambda: policy.poll() is not None, 20.0)
    assert probe.wait_for(lambda: gripper.cancelled == 1, 2.0)
