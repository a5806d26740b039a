"""The gripper's convention, the grippers' kinds, and what twist and pose arms are sent."""

from __future__ import annotations

import importlib.util
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import rclpy
import yaml
from action_msgs.msg import GoalInfo, GoalStatus
from action_msgs.srv import CancelGoal
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from rclpy.task import Future
from ros_graph import WIDOWX, Probe, values_of
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_align_ros.contract.actions import (
    GripperConvention,
    matrix_from_rpy,
    rotvec_from_matrix,
)
from vla_align_ros.errors import ConfigurationError, ContractError
from vla_align_ros.ros.arms import ARMS, Arm, ArmConfig, gripper, make_arm
from vla_align_ros.ros.arms.base import check_alone
from vla_align_ros.ros.arms.gripper import (
    GoalFilter,
    fill_gripper_command,
    fill_parallel_gripper_command,
    import_action,
    make_gripper,
)
from vla_align_ros.ros.arms.pose import FziArm
from vla_align_ros.ros.messages import pose_to_vector
from vla_align_ros.runtime.chunks import ScheduledAction
from vla_align_ros.runtime.safety import LONGEST_TICK_S, Command, Limits

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
        JointState(name=["finger"], position=[math.inf]),
    ],
    ids=["another joint", "no position", "nan", "infinite"],
)
def test_a_message_that_does_not_tell_is_no_reading(message: JointState) -> None:
    assert ARM.fraction_open(message) is None


@pytest.mark.parametrize(
    "position", [50.0, 5.0, 1.7, -0.4], ids=["mm", "cm", "radians", "elsewhere"]
)
def test_a_finger_far_out_of_its_range_is_refused_and_not_taken_for_open(position: float) -> None:
    with pytest.raises(ContractError, match=r"expected about 0\.01 \(closed\) to 0\.05 \(open\)"):
        ARM.fraction_open(JointState(name=["finger"], position=[position]))


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
        assert values_of(probe.twists[0][1]) in ([0, 1, 2, 3, 4, 5], [0] * 6)
        probe.wait_for(lambda: len(probe.twists) > 1, 0.3)
        assert values_of(probe.twists[-1][1]) == [0] * 6
        for _, twist in probe.twists:  # the zero is taken by its stamp and frame, too
            assert (twist.header.stamp, twist.header.frame_id) == (stamp, "base_link")
        assert list(probe.grippers[0].data) == [0.5]
        assert len(probe.grippers) == 1

        assert arm.rivals() == []
        rival = probe.node.create_publisher(type(probe.twists[0][1]), arm._topic.name, 1)
        assert probe.wait_for(lambda: arm.rivals() == [arm._topic.name])
        assert arm.contested() == [], "its controller listens to both"
        probe.node.destroy_publisher(rival)
    finally:
        arm.destroy()
        left = [topic.topic_name for topic in node.publishers]
        node.destroy_node()
        probe.close()
    assert not [name for name in left if name.endswith("_commands") or name.endswith("_cmds")]


def test_a_command_is_reliable_and_replaces_the_one_before_unless_a_person_says_otherwise(
    ros: None,
) -> None:
    node = LifecycleNode(
        "policy_node",
        parameter_overrides=[
            Parameter("qos_overrides./policy_node/gripper_commands.publisher.depth", value=7)
        ],
    )
    arm = make_arm(node, ARM, LIMITS, lambda: None)
    depths = {}
    for topic in node.publishers:
        if topic.topic_name.endswith(("delta_twist_cmds", "gripper_commands")):
            assert topic.qos_profile.reliability == ReliabilityPolicy.RELIABLE
            depths[topic.topic_name.rpartition("/")[2]] = topic.qos_profile.depth
    assert depths == {"delta_twist_cmds": 1, "gripper_commands": 7}
    arm.destroy()
    node.destroy_node()


def test_the_watchdog_is_no_rival_and_a_controller_that_hangs_has_not_acknowledged(
    ros: None, start_node: Callable[..., subprocess.Popen[str]]
) -> None:
    node = LifecycleNode("policy_node")
    arm = make_arm(node, ARM, LIMITS, lambda: None)
    node.trigger_configure()
    node.trigger_activate()
    name = "/policy_node/delta_twist_cmds"
    listener = start_node(
        *("watchdog_node", "--params-file", str(WIDOWX), "-r", f"~/delta_twist_cmds:={name}")
    )
    try:
        end_s = time.monotonic() + 60.0
        while node.count_subscribers(name) < 1 or node.count_publishers(name) < 2:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        time.sleep(0.3)
        assert arm.rivals() == []

        arm.stop(node.get_clock().now().to_msg())
        assert arm.flush(5.0)
        listener.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        arm.stop(node.get_clock().now().to_msg())
        assert not arm.flush(0.3)
        listener.send_signal(signal.SIGCONT)
        assert arm.flush(5.0), "it waits until then"
    finally:
        listener.send_signal(signal.SIGCONT)
        arm.destroy()
        node.destroy_node()


def test_a_watchdog_of_another_name_is_no_rival_either(
    ros: None, start_node: Callable[..., subprocess.Popen[str]]
) -> None:
    node, rival = LifecycleNode("policy_node"), rclpy.create_node("rival")
    arm = make_arm(node, ARM, LIMITS, lambda: None)
    name = "/policy_node/delta_twist_cmds"
    start_node(
        *("watchdog_node", "--params-file", str(WIDOWX), "-r", "__node:=left_watchdog"),
        *("-r", f"~/delta_twist_cmds:={name}", "-r", "~/watched:=/policy_node/watched"),
    )
    try:
        end_s = time.monotonic() + 60.0
        while node.count_publishers(name) < 2 or not node.count_publishers("/policy_node/watched"):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert arm.rivals() == []
        rival.create_publisher(TwistStamped, name, 1)
        while node.count_publishers(name) < 3:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert arm.rivals() == [name]
    finally:
        arm.destroy()
        node.destroy_node()
        rival.destroy_node()


# -- target poses ------------------------------------------------------------------------------
@pytest.mark.parametrize("interface", ARMS)
def test_whatever_arm_is_sent_targets_needs_the_measured_pose(interface: str) -> None:
    assert replace(ARM, interface=interface).needs_pose == (interface != "twist")


STAMP = Time(sec=12, nanosec=34)


class PoseBench:
    """An arm of target poses that stands where and when a test says, and what it is sent."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.measured: NDArray[np.float64] | None = np.array([0.3, 0.0, 0.2, 0.1, -0.2, 0.5])
        self.now_s = 100.0
        self.targets: list[PoseStamped] = []
        self.openings: list[Float64MultiArray] = []
        self.node = LifecycleNode("policy_node")
        self.arm = FziArm(
            self.node,
            ARM,
            limits,
            make_gripper(self.node, ARM),
            lambda: self.measured,
            lambda: self.now_s,
        )
        for topic in self.node.publishers:
            if topic.topic_name.endswith("/target_frame"):
                topic.publish = self.targets.append
            elif topic.topic_name.endswith("/gripper_commands"):
                topic.publish = self.openings.append

    def send(self, *twist: float, after_s: float = 0.05) -> tuple[list[float], list[float]]:
        """Send a twist and return how far its target leads the arm, in m and rad."""
        assert self.measured is not None
        self.now_s += after_s
        self.arm.send(replace(CLOSE, twist=np.array(twist), gripper=0.25), STAMP)
        target = pose_to_vector(self.targets[-1])
        turn = matrix_from_rpy(target[3:]) @ matrix_from_rpy(self.measured[3:]).T
        return list(target[:3] - self.measured[:3]), list(rotvec_from_matrix(turn))


@pytest.fixture
def bench(ros: None) -> Iterator[PoseBench]:
    bench = PoseBench()
    yield bench
    bench.arm.destroy()
    bench.node.destroy_node()


def test_the_first_target_is_a_period_ahead_of_the_arm_and_the_next_by_the_time_since(
    bench: PoseBench,
) -> None:
    speed = (0.1, -0.04, 0.0, 0.0, 0.0, 0.4)

    def expect_lead(led: tuple[list[float], list[float]], ahead_s: float) -> None:
        np.testing.assert_allclose(np.concatenate(led), ahead_s * np.array(speed), atol=1e-12)

    ahead_s = ARM.command_period_s
    expect_lead(bench.send(*speed, after_s=9.0), ahead_s)
    header = bench.targets[0].header
    assert (header.stamp, header.frame_id) == (STAMP, "base_link")
    assert [list(opening.data) for opening in bench.openings] == [[0.5]]
    ahead_s += 0.08
    expect_lead(bench.send(*speed, after_s=0.08), ahead_s)
    ahead_s += LONGEST_TICK_S
    expect_lead(bench.send(*speed, after_s=9.0), ahead_s)
    ahead_s += 1e-3
    expect_lead(bench.send(*speed, after_s=0.0), ahead_s)


def test_an_arm_that_is_held_back_is_led_by_both_of_its_leashes_at_most(bench: PoseBench) -> None:
    for _ in range(100):
        place, turn = bench.send(0.3, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert place == pytest.approx([ARM.leash_m, 0.0, 0.0])
    assert turn == pytest.approx([0.0, ARM.leash_rad, 0.0], abs=1e-9)


def test_a_target_keeps_out_of_a_box_that_the_arm_stands_before(ros: None) -> None:
    box = ((0.32, -1.0, 0.0), (0.5, 1.0, 1.0))
    bench = PoseBench(replace(LIMITS, keep_out_m=(box,)))
    for _ in range(100):
        place, _ = bench.send(0.3, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert 0.3 + place[0] <= 0.32
    bench.node.destroy_node()


def test_a_stop_is_the_measured_pose_once_and_the_next_motion_begins_anew(
    bench: PoseBench,
) -> None:
    for _ in range(10):
        bench.send(0.3, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert bench.measured is not None
    bench.targets.clear()
    bench.openings.clear()
    bench.arm.stop(STAMP)
    (target,) = bench.targets
    assert (target.header.stamp, target.header.frame_id) == (STAMP, "base_link")
    np.testing.assert_allclose(pose_to_vector(target), bench.measured, atol=1e-12)
    assert bench.openings == [], "the gripper keeps what it holds"

    bench.measured += np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.1])  # a person moves it
    place, turn = bench.send(0.1, 0.0, 0.0, 0.0, 0.0, 0.0, after_s=60.0)
    assert place == pytest.approx([0.1 * ARM.command_period_s, 0.0, 0.0])
    assert turn == pytest.approx([0.0] * 3, abs=1e-9)


def test_an_arm_whose_pose_is_not_known_is_sent_neither_a_target_nor_an_opening(
    bench: PoseBench,
) -> None:
    bench.send(0.3, 0.0, 0.0, 0.0, 0.0, 0.0)
    bench.targets.clear()
    bench.openings.clear()
    bench.measured = None
    bench.arm.send(CLOSE, STAMP)
    bench.arm.stop(STAMP)
    assert (bench.targets, bench.openings) == ([], [])


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
    assert goals.wants(0.97, 3.0)
    assert not goals.wants(0.99, 4.0)
    assert goals.wants(1.0, 5.0), "nearly open is not open"


def test_by_default_a_goal_is_a_fiftieth_of_the_range_and_a_fifth_of_a_second_apart() -> None:
    goals = GoalFilter()
    assert goals.wants(0.5, 0.0)
    assert not goals.wants(0.51, 1.0)
    assert goals.wants(0.53, 1.0)
    assert not goals.wants(0.3, 1.1)
    assert goals.wants(0.3, 1.25), "what came too soon is not forgotten"


def test_a_change_of_a_whole_step_after_a_whole_period_is_a_goal() -> None:
    goals = GoalFilter(step=0.25, period_s=0.5)
    assert goals.wants(0.25, 0.0)
    assert goals.wants(0.5, 0.5)


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
        self.commands: list[object] = []
        self.handle: SimpleNamespace | None = None  # of the goal whose answer lies in `pending`
        self.holds_back = ""  # "answer" or "result": it lies in `pending` then
        self.pending = Future()
        self.cancels = True
        self.cancelled: list[float] = []  # the goals that it was told to cancel
        self.cancellation: Future | None = None  # answers a cancellation; None: it is, at once
        self.kind = self.name = ""

    def server_is_ready(self) -> bool:
        return self.there

    def send_goal_async(self, goal: SimpleNamespace) -> Future:
        self.goals.append(goal.command.position)
        self.commands.append(goal.command)
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
        if self.cancellation is not None:
            return self.cancellation
        answer = CancelGoal.Response()
        if self.cancels:
            answer.goals_canceling = [GoalInfo()]
        return done(answer)

    def destroy(self) -> None:
        self.there = False


def done(result: object) -> Future:
    future = Future()
    future.set_result(result)
    return future


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    goal = SimpleNamespace(Goal=lambda: SimpleNamespace(command=SimpleNamespace()))

    def import_kind(kind: str) -> SimpleNamespace:
        server.kind = kind
        return goal

    def connect(_: LifecycleNode, kind: SimpleNamespace, name: str) -> FakeServer:
        assert kind is goal
        server.name = name
        return server

    monkeypatch.setattr(gripper, "import_action", import_kind)
    monkeypatch.setattr(gripper, "ActionClient", connect)
    monkeypatch.setattr(gripper, "time", SimpleNamespace(monotonic=count().__next__))
    return server


ACTION = replace(ARM, gripper_interface="gripper_command", gripper_action="gripper/command")


@pytest.fixture
def action_arm(ros: None, server: FakeServer) -> Iterator[Arm]:
    node = LifecycleNode("policy_node")
    yield make_arm(node, ACTION, LIMITS, lambda: None)
    node.destroy_node()


@pytest.mark.parametrize(
    ("interface", "kind", "command"),
    [
        ("gripper_command", "GripperCommand", SimpleNamespace(position=1.0, max_effort=0.0)),
        (
            "parallel_gripper_command",
            "ParallelGripperCommand",
            JointState(name=["finger"], position=[1.0]),
        ),
    ],
)
def test_an_action_gripper_asks_for_the_type_and_the_server_of_the_robots_file(
    ros: None, server: FakeServer, interface: str, kind: str, command: object
) -> None:
    node = LifecycleNode("policy_node")
    arm = make_arm(node, replace(ACTION, gripper_interface=interface), LIMITS, lambda: None)
    assert (server.kind, server.name) == (kind, "gripper/command")
    arm.send(CLOSE, Time())
    assert server.commands == [command]
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


@pytest.mark.parametrize("late", ["answer", "result"])
def test_a_goal_that_is_lost_is_told_and_sent_again(
    action_arm: Arm, server: FakeServer, late: str
) -> None:
    server.holds_back = late
    action_arm.send(CLOSE, Time())
    server.pending.set_exception(RuntimeError("the connection broke"))
    assert "the connection broke" in action_arm.troubles()["gripper"]
    server.holds_back = ""
    action_arm.send(CLOSE, Time())
    assert server.goals == [CLOSED, CLOSED]
    assert action_arm.troubles() == {}


def test_a_server_that_comes_back_is_sent_the_opening_again(
    action_arm: Arm, server: FakeServer
) -> None:
    """One that ended took its goal along, and the gripper may be where it wants."""
    server.holds_back = "result"
    action_arm.send(CLOSE, Time())
    server.there = False
    action_arm.send(CLOSE, Time())
    server.there = True
    action_arm.send(CLOSE, Time())
    assert server.goals == [CLOSED, CLOSED]


def test_after_the_stop_of_a_pose_arm_the_same_opening_is_a_goal_again(
    ros: None, server: FakeServer
) -> None:
    node = LifecycleNode("policy_node")
    arm = make_arm(node, replace(ACTION, interface="fzi_pose"), LIMITS, lambda: np.zeros(6))
    for _ in range(3):
        arm.send(CLOSE, Time())
    assert server.goals == [CLOSED]
    arm.stop(Time())
    arm.send(CLOSE, Time())
    assert server.goals == [CLOSED, CLOSED]
    node.destroy_node()


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


def test_a_refusal_of_an_older_goal_neither_counts_nor_sends_the_last_one_again(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back, server.accepts = "answer", False
    action_arm.send(CLOSE, Time())
    early, handle = server.pending, server.handle
    server.accepts = True
    action_arm.send(OPEN, Time())
    early.set_result(handle)
    action_arm.send(OPEN, Time())
    assert action_arm.troubles() == {}
    assert server.goals == [CLOSED, OPENED]


def test_a_failure_stands_in_the_log_too(
    action_arm: Arm, server: FakeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.accepts = False
    action_arm.send(CLOSE, Time())
    assert action_arm.troubles()["gripper"] in capfd.readouterr().err


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


def test_an_opening_whose_goal_was_cancelled_is_a_goal_again(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back = "result"
    action_arm.send(CLOSE, Time())
    action_arm.halt_gripper()
    action_arm.send(CLOSE, Time())
    assert server.goals == [CLOSED, CLOSED]


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


def test_a_goal_that_no_server_cancels_is_cancelled_again_until_one_does(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back, server.cancels = "result", False
    action_arm.send(CLOSE, Time())
    for asked in (1, 2):
        action_arm.halt_gripper()
        assert server.cancelled == [CLOSED] * asked, "its server had refused"
    server.cancellation = Future()
    action_arm.halt_gripper()
    action_arm.halt_gripper()
    assert server.cancelled == [CLOSED] * 4, "it had not answered"
    server.cancels, server.cancellation = True, None
    for _ in range(3):
        action_arm.halt_gripper()
    assert server.cancelled == [CLOSED] * 5


def test_a_cancellation_is_repeated_once_in_a_while_and_not_on_every_tick(
    action_arm: Arm, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(gripper, "time", SimpleNamespace(monotonic=lambda: now_s))
    server.holds_back, server.cancels = "result", False
    action_arm.send(CLOSE, Time())
    for _ in range(50):  # ticks of 20 Hz: 2.5 s
        action_arm.halt_gripper()
        now_s += 0.05
    assert server.cancelled == [CLOSED] * 3


R = CancelGoal.Response


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (R.ERROR_UNKNOWN_GOAL_ID, False),
        (R.ERROR_GOAL_TERMINATED, False),
        (R.ERROR_REJECTED, True),
        (R.ERROR_NONE, True),
    ],
)
def test_a_goal_that_had_ended_needs_no_cancellation(
    action_arm: Arm, server: FakeServer, code: int, told: bool
) -> None:
    server.holds_back, server.cancellation = "result", done(R(return_code=code))
    action_arm.send(CLOSE, Time())
    action_arm.halt_gripper()
    assert bool(action_arm.troubles()) == told


def test_a_cancellation_that_is_not_answered_is_told(action_arm: Arm, server: FakeServer) -> None:
    server.holds_back, server.cancellation = "result", Future()
    action_arm.send(CLOSE, Time())
    action_arm.halt_gripper()
    server.cancellation.set_exception(RuntimeError("the connection broke"))
    assert "may go on" in action_arm.troubles()["gripper"]
    assert "the connection broke" in action_arm.troubles()["gripper"]


def test_a_refused_cancellation_says_nothing_once_the_goal_has_ended_or_the_arm_is_gone(
    action_arm: Arm, server: FakeServer
) -> None:
    server.holds_back, server.cancellation = "result", Future()
    action_arm.send(CLOSE, Time())
    action_arm.halt_gripper()
    server.pending.set_result(SimpleNamespace(status=server.status, result=server))
    server.cancellation.set_result(R(return_code=R.ERROR_REJECTED))
    assert action_arm.troubles() == {}

    server.pending, server.cancellation = Future(), Future()
    action_arm.send(OPEN, Time())
    action_arm.halt_gripper()
    action_arm.destroy()
    server.there = True
    server.cancellation.set_result(R(return_code=R.ERROR_REJECTED))
    assert action_arm.troubles() == {}


def test_a_cancelled_goal_does_not_make_good_the_failure_before(
    action_arm: Arm, server: FakeServer
) -> None:
    server.status = GoalStatus.STATUS_ABORTED
    action_arm.send(CLOSE, Time())
    server.holds_back = "result"
    action_arm.send(OPEN, Time())
    action_arm.halt_gripper()
    server.pending.set_result(SimpleNamespace(status=GoalStatus.STATUS_CANCELED, result=None))
    assert "aborted the goal" in action_arm.troubles()["gripper"]


def test_a_trajectory_controller_is_sent_one_point_two_periods_ahead(ros: None) -> None:
    node = LifecycleNode("policy_node")
    config = replace(ARM, gripper_interface="trajectory", command_period_s=0.25)
    arm = make_arm(node, config, LIMITS, lambda: None)
    sent: list[JointTrajectory] = []
    for topic in node.publishers:
        if topic.topic_name == "/policy_node/gripper_commands":
            assert topic.msg_type is JointTrajectory
            topic.publish = sent.append
    arm.send(replace(CLOSE, gripper=0.25), STAMP)
    (trajectory,) = sent
    assert (trajectory.header.stamp, trajectory.joint_names) == (Time(), ["finger"])
    (point,) = trajectory.points
    assert (list(point.positions), point.time_from_start) == ([0.5], Duration(nanosec=500_000_000))
    node.destroy_node()


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


def test_an_arm_without_a_gripper_publishes_no_openings(ros: None) -> None:
    node = LifecycleNode("policy_node")
    before = {topic.topic_name for topic in node.publishers}
    make_arm(node, replace(ARM, gripper_interface="none"), LIMITS, lambda: None)
    made = {topic.topic_name for topic in node.publishers} - before
    assert made == {"/policy_node/delta_twist_cmds"}
    node.destroy_node()


@pytest.mark.parametrize("late", ["answer", "result"])
def test_what_is_answered_once_the_arm_is_gone_is_not_looked_at(
    action_arm: Arm, server: FakeServer, late: str
) -> None:
    server.holds_back = late
    action_arm.send(CLOSE, Time())
    action_arm.destroy()
    assert not server.there, "the client has left the graph"
    server.there = True
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
    for _ in range(26):  # seconds, by the clock of these tests
        action_arm.send(CLOSE, Time())
    assert len(described) == 6


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


def test_a_control_msgs_that_lacks_the_action_is_refused_like_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "control_msgs", ModuleType("control_msgs"))
    monkeypatch.setitem(sys.modules, "control_msgs.action", ModuleType("control_msgs.action"))
    with pytest.raises(ConfigurationError, match="control_msgs/ParallelGripperCommand is not"):
        import_action("ParallelGripperCommand")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"interface": "telepathy"}, "twist or crisp_pose or fzi_pose"),
        ({"gripper_interface": "hand"}, "forward or trajectory or none or gripper_command"),
        ({"gripper_interface": "gripper_command"}, "arm.gripper.action"),
        (
            {"gripper_interface": "gripper_command", "gripper_action": "my-gripper/command"},
            "arm.gripper.action 'my-gripper/command'",
        ),
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
