"""The gripper's convention, the grippers' kinds, and the commands of a twist arm."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
import yaml
from action_msgs.msg import GoalInfo, GoalStatus
from action_msgs.srv import CancelGoal
from builtin_interfaces.msg import Time
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future
from ros_graph import WIDOWX, Probe, values_of
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from vla_align_ros.contract.actions import GripperConvention
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.arms import Arm, ArmConfig, gripper, make_arm
from vla_align_ros.ros.arms.base import check_alone
from vla_align_ros.ros.arms.gripper import (
    GoalFilter,
    fill_gripper_command,
    fill_parallel_gripper_command,
    import_action,
)
from vla_align_ros.runtime.chunks import ScheduledAction
from vla_align_ros.runtime.safety import Command, Limits

ARM = ArmConfig(
    name="test",
    command_frame="base_link",
    gripper_joint="finger",
    gripper_position_m=GripperConvention(closed=0.01, open=0.05),
    gripper_command=GripperConvention(closed=1.0, open=-1.0),
)
LIMITS = Limits(linear_m_s=0.4, angular_rad_s=2.0)


@pytest.mark.parametrize(
    ("position_m", "fraction"), [(0.01, 0.0), (0.05, 1.0), (0.03, 0.5), (0.0, 0.0), (0.2, 1.0)]
)
def test_finger_travel_becomes_a_fraction(position_m: float, fraction: float) -> None:
    message = JointState(name=["elbow", "finger"], position=[9.0, position_m])
    assert ARM.fraction_open(message) == pytest.approx(fraction)


@pytest.mark.parametrize(
    "message",
    [
        JointState(name=["elbow"], position=[0.02]),
        JointState(name=["elbow", "finger"], position=[0.02]),
        JointState(name=["finger"], position=[math.nan]),
    ],
    ids=["another joint", "no position", "nan"],
)
def test_a_message_that_does_not_tell_is_no_reading(message: JointState) -> None:
    assert ARM.fraction_open(message) is None


def test_commands_and_one_zero_reach_the_controller(ros: None) -> None:
    node = LifecycleNode("policy_node")
    probe = Probe()
    arm = make_arm(node, ARM, LIMITS, lambda: None)
    scheduled = ScheduledAction(np.zeros(7), 0.2, "go", 0.0, 0, 1)
    command = Command(np.arange(6.0), 0.25, scheduled)
    stamp = node.get_clock().now().to_msg()
    try:
        arm.send(command, stamp)  # inactive: must not leave
        assert node.trigger_configure().name == "SUCCESS"
        assert node.trigger_activate().name == "SUCCESS"
        time.sleep(0.2)
        assert probe.wait_for(lambda: node.count_subscribers("/policy_node/delta_twist_cmds") == 1)
        arm.send(command, stamp)
        arm.stop(stamp)
        assert arm.flush(2.0)
        assert probe.wait_for(lambda: bool(probe.twists and probe.grippers), 2.0)
        assert probe.twists[0][1].header.frame_id == "base_link"
        assert values_of(probe.twists[0][1]) in ([0, 1, 2, 3, 4, 5], [0] * 6)
        probe.wait_for(lambda: len(probe.twists) > 1, 0.3)
        assert values_of(probe.twists[-1][1]) == [0] * 6
        assert list(probe.grippers[0].data) == [0.5]
        assert len(probe.grippers) == 1

        assert arm.rivals() == []
        rival = probe.node.create_publisher(type(probe.twists[0][1]), arm._topic.name, 1)
        assert probe.wait_for(lambda: arm.rivals() == [arm._topic.name])
        probe.node.destroy_publisher(rival)
    finally:
        arm.destroy()
        node.destroy_node()
        probe.close()


# -- grippers ----------------------------------------------------------------------------------
def test_a_goal_is_sent_for_a_change_and_not_in_a_stream() -> None:
    goals = GoalFilter(step=0.05, period_s=0.2)
    sent = [k for k in range(100) if goals.wants(1.0 if k < 50 else 0.01 * (100 - k), 0.05 * k)]
    assert sent[0] == 0
    assert not [k for k in sent if 0 < k < 50], "an opening that stays is no new goal"
    assert min(np.diff(sent)) >= 4, "closer than the period"
    assert goals.wants(0.0, 100.0) and not goals.wants(0.0, 200.0)


def test_the_end_of_the_range_is_always_worth_a_goal() -> None:
    goals = GoalFilter(step=0.05, period_s=0.2)
    assert goals.wants(0.03, 0.0)
    assert not goals.wants(0.01, 1.0)
    assert goals.wants(0.0, 2.0), "nearly closed is not closed"


@pytest.mark.parametrize("path", sorted(WIDOWX.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_robots_gripper_lies_in_the_namespace_of_its_arm(path: Path) -> None:
    arm = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]["arm"]
    assert not arm["gripper"].get("action", "").startswith("/")


def test_after_a_stop_an_opening_is_a_goal_again_and_still_not_in_a_stream() -> None:
    goals = GoalFilter(step=0.05, period_s=0.2)
    assert goals.wants(0.0, 0.0)
    assert not goals.wants(0.0, 1.0)
    goals.rest()  # a person opens it
    assert goals.wants(0.0, 2.0)
    goals.rest()
    assert not goals.wants(0.0, 2.1)
    assert goals.wants(0.0, 2.3)


class FakeServer:
    """Stands where an action's client does; answers goals with what it is told to."""

    def __init__(self) -> None:
        self.there, self.accepts = True, True
        self.status, self.stalled = GoalStatus.STATUS_SUCCEEDED, False
        self.goals: list[float] = []
        self.handle: SimpleNamespace | None = None  # of the goal whose answer lies in `pending`
        self.holds_back = ""  # "answer" or "result": it lies in `pending` then
        self.pending = Future()
        self.cancels = True
        self.cancelled: list[float] = []  # the goals that it was told to cancel

    def server_is_ready(self) -> bool:
        return self.there

    def send_goal_async(self, goal: SimpleNamespace) -> Future:
        self.goals.append(goal.command.position)
        result = done(SimpleNamespace(status=self.status, result=self))
        result = self.pending if self.holds_back == "result" else result
        handle = SimpleNamespace(
            accepted=self.accepts,
            get_result_async=lambda: result,
            cancel_goal_async=lambda: self.cancel(goal.command.position),
        )
        if self.holds_back != "answer":
            return done(handle)
        self.handle, self.pending = handle, Future()
        return self.pending

    def cancel(self, position: float) -> Future:
        self.cancelled.append(position)
        answer = CancelGoal.Response()
        if self.cancels:
            answer.goals_canceling = [GoalInfo()]
        return done(answer)

    def destroy(self) -> None:
        pass


def done(result: object) -> Future:
    future = Future()
    future.set_result(result)
    return future


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    goal = SimpleNamespace(Goal=lambda: SimpleNamespace(command=SimpleNamespace()))
    monkeypatch.setattr(gripper, "import_action", lambda name: goal)
    monkeypatch.setattr(gripper, "ActionClient", lambda node, kind, name: server)
    monkeypatch.setattr(gripper, "time", SimpleNamespace(monotonic=count().__next__))
    return server


@pytest.fixture
def action_arm(ros: None, server: FakeServer) -> Iterator[Arm]:
    node = LifecycleNode("policy_node")
    config = replace(ARM, gripper_interface="gripper_command", gripper_action="gripper/command")
    yield make_arm(node, config, LIMITS, lambda: None)
    node.destroy_node()


CLOSE = Command(np.zeros(6), 0.0, ScheduledAction(np.zeros(7), 0.2, "go", 0.0, 0, 1))


def test_a_goal_that_came_to_nothing_is_told_and_a_refused_one_sent_again(
    action_arm: Arm, server: FakeServer
) -> None:
    def send(times: int) -> int:
        before = len(server.goals)
        for _ in range(times):
            action_arm.send(CLOSE, Time())
        return len(server.goals) - before

    server.there = False
    assert send(3) == 0
    assert "no action server at gripper/command" in action_arm.troubles()["gripper"]
    server.there, server.accepts = True, False
    assert send(3) == 3
    assert "refuses the goal" in action_arm.troubles()["gripper"]
    server.accepts, server.status = True, GoalStatus.STATUS_ABORTED
    assert send(10) == 1, "it may hold something: a stream of grasps would not"
    assert "aborted the goal" in action_arm.troubles()["gripper"]
    server.stalled = True
    action_arm.stop(Time())
    assert send(3) == 1, "it holds something"
    assert action_arm.troubles() == {}
    server.stalled, server.status = False, GoalStatus.STATUS_SUCCEEDED
    action_arm.stop(Time())
    assert send(3) == 1 and action_arm.troubles() == {}


OPEN = replace(CLOSE, gripper=1.0)


def test_what_becomes_of_an_older_goal_says_nothing_of_the_last(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back = "result"
    action_arm.send(CLOSE, Time())
    server.holds_back, server.accepts = "", False
    action_arm.send(OPEN, Time())
    assert "refuses the goal" in action_arm.troubles()["gripper"]
    server.pending.set_result(SimpleNamespace(status=server.status, result=server))
    assert "refuses the goal" in action_arm.troubles()["gripper"]


CLOSED, OPENED = ARM.gripper_command.closed, ARM.gripper_command.open


def test_a_goal_under_way_is_cancelled_once_and_a_hold_leaves_it(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back = "result"
    action_arm.send(CLOSE, Time())
    action_arm.stop(Time())
    assert server.cancelled == [], "a hold lets a grasp be finished"
    for _ in range(3):  # every tick of the stop
        action_arm.halt_gripper()
    assert server.cancelled == [CLOSED]
    server.pending.set_result(SimpleNamespace(status=GoalStatus.STATUS_CANCELED, result=None))
    assert action_arm.troubles() == {}
    server.holds_back = ""
    action_arm.send(CLOSE, Time())
    assert server.goals == [CLOSED, CLOSED], "once it may move again the same opening is a goal"
    action_arm.halt_gripper()
    assert server.cancelled == [CLOSED], "what has ended keeps what it holds"


def test_a_goal_that_is_accepted_after_the_stop_is_cancelled_then(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back = "answer"
    action_arm.send(CLOSE, Time())
    early, handle = server.pending, server.handle
    action_arm.halt_gripper()
    assert server.cancelled == []
    action_arm.send(OPEN, Time())  # armed again
    server.holds_back = "result"
    for answer, accepted in ((early, handle), (server.pending, server.handle)):
        assert accepted is not None
        accepted.get_result_async = Future  # which never comes
        answer.set_result(accepted)
    assert server.goals == [CLOSED, OPENED]
    assert server.cancelled == [CLOSED]


def test_every_goal_without_a_result_is_cancelled(action_arm: Arm, server: FakeServer) -> None:
    """A server may queue them, and go back to the older one if it refuses the newer."""
    server.holds_back = "result"
    action_arm.send(CLOSE, Time())
    action_arm.send(OPEN, Time())
    action_arm.halt_gripper()
    assert server.cancelled == [CLOSED, OPENED]


def test_a_server_that_does_not_cancel_is_told(action_arm: Arm, server: FakeServer) -> None:
    server.holds_back, server.cancels = "result", False
    action_arm.send(CLOSE, Time())
    action_arm.halt_gripper()
    assert "refuses to cancel" in action_arm.troubles()["gripper"]


@pytest.mark.parametrize("interface", ["forward", "trajectory", "none"])
def test_a_gripper_without_goals_is_sent_nothing_at_a_stop(ros: None, interface: str) -> None:
    node = LifecycleNode("policy_node")
    arm = make_arm(node, replace(ARM, gripper_interface=interface), LIMITS, lambda: None)
    node.trigger_configure()
    node.trigger_activate()
    sent: list[object] = []
    for topic in node.publishers:
        if topic.topic_name.endswith("gripper_commands"):
            topic.publish = sent.append
    arm.halt_gripper()
    assert sent == []
    node.destroy_node()


@pytest.mark.parametrize("late", ["answer", "result"])
def test_what_is_answered_once_the_arm_is_gone_is_not_looked_at(
    action_arm: Arm, server: FakeServer, late: str
) -> None:
    server.holds_back = late
    action_arm.send(CLOSE, Time())
    action_arm.destroy()
    server.pending.set_result(
        SimpleNamespace(accepted=False, status=GoalStatus.STATUS_ABORTED, result=None)
    )
    assert action_arm.troubles() == {}


def test_an_absent_server_is_logged_once_in_a_while_and_formats_no_text_in_between(
    action_arm: Arm, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[str] = []

    def describe(_: object) -> str:
        described.append("absent")
        return described[-1]

    monkeypatch.setattr(gripper.ActionGripper, "_describe_absence", describe)
    server.there = False
    for _ in range(20):  # seconds, by the clock of these tests
        action_arm.send(CLOSE, Time())
    assert len(described) == 4


def test_beside_another_publisher_on_the_gripper_alone_a_pose_arm_is_commanded(ros: None) -> None:
    node, rival = LifecycleNode("policy_node"), rclpy.create_node("rival")
    arm = make_arm(node, replace(ARM, interface="crisp_pose"), LIMITS, lambda: None)
    rival.create_publisher(Float64MultiArray, "/policy_node/gripper_commands", 1)
    try:
        end_s = time.monotonic() + 10.0
        while arm.rivals() != ["/policy_node/gripper_commands"]:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert arm.contested() == []
        check_alone(arm)
    finally:
        rival.destroy_node()
        node.destroy_node()


def test_goals_of_both_actions_carry_position_joint_and_effort() -> None:
    config = replace(ARM, gripper_max_effort=20.0)
    goal = SimpleNamespace(command=SimpleNamespace(position=None, max_effort=None))
    fill_gripper_command(goal, 0.03, config)
    assert (goal.command.position, goal.command.max_effort) == (0.03, 20.0)
    fill_parallel_gripper_command(goal, 0.03, config)
    assert isinstance(goal.command, JointState)
    assert (goal.command.name, list(goal.command.position)) == (["finger"], [0.03])
    assert list(goal.command.effort) == [20.0]
    fill_parallel_gripper_command(goal, 0.03, ARM)
    assert list(goal.command.effort) == [], "no effort given leaves the controller's default"


@pytest.mark.skipif(
    importlib.util.find_spec("control_msgs") is not None, reason="control_msgs is installed"
)
@pytest.mark.parametrize("name", ["GripperCommand", "ParallelGripperCommand"])
def test_without_control_msgs_an_action_gripper_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigurationError, match="ros-<distro>-control-msgs") as caught:
        import_action(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"interface": "telepathy"}, "twist or crisp_pose or fzi_pose"),
        ({"gripper_interface": "hand"}, "forward or trajectory or none or gripper_command"),
        ({"gripper_interface": "gripper_command"}, "arm.gripper.action"),
        ({"gripper_interface": "trajectory", "gripper_joint": ""}, "arm.gripper.joint"),
    ],
)
def test_an_interface_that_cannot_be_is_refused_by_name(
    ros: None, changes: dict[str, str], says: str
) -> None:
    node = LifecycleNode("policy_node")
    try:
        with pytest.raises(ConfigurationError, match=says):
            make_arm(node, replace(ARM, **changes), LIMITS, lambda: None)  # type: ignore[arg-type]
    finally:
        node.destroy_node()
