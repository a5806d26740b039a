"""policy_node against stand-ins that take commands by the rules of Servo, CRISP and FZI."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_graph import ACTIVATE, CONFIGURE, DEACTIVATE, WIDOWX, Probe, values_of
from std_msgs.msg import Bool
from tiny_policy import CARROT
from trajectory_msgs.msg import JointTrajectory

from vla_align_ros.ros.servo import ServoInput

LEASH_M = 0.05
FRAME = "base_link"
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
Start = Callable[..., subprocess.Popen[str]]


class PoseFollower:
    """A Cartesian controller that goes towards its newest target, and holds its rules.

    CRISP ignores every message while two publish; both refuse another frame and what is not
    finite; neither looks at the stamp, and neither ever gives up its last target.
    """

    def __init__(self, probe: Probe, topic: str, *, alone: bool) -> None:
        self.probe = probe
        self.name = f"/policy_node/{topic}"
        self.targets: list[np.ndarray] = []
        self.leads_m: list[float] = []
        self.refused: list[str] = []
        self.follows = True
        self._alone = alone
        probe.node.create_subscription(PoseStamped, self.name, self._on_target, NEWEST)
        probe.node.create_timer(0.01, self._move)

    @property
    def position(self) -> np.ndarray:
        return np.array(self.probe.pose)

    def _on_target(self, message: PoseStamped) -> None:
        place, turn = message.pose.position, message.pose.orientation
        target = np.array([place.x, place.y, place.z])
        norm = np.linalg.norm([turn.x, turn.y, turn.z, turn.w])
        if self._alone and self.probe.node.count_publishers(self.name) > 1:
            self.refused.append("several publishers")
        elif message.header.frame_id != FRAME:
            self.refused.append(f"frame {message.header.frame_id}")
        elif not np.isfinite(target).all() or abs(norm - 1.0) > 1e-6:
            self.refused.append("no pose")
        else:
            self.targets.append(target)
            self.leads_m.append(float(np.linalg.norm(target - self.position)))

    def _move(self) -> None:
        if self.targets and self.follows:
            self.probe.pose = tuple(self.position + 0.2 * (self.targets[-1] - self.position))


@pytest.fixture
def probe(ros: None) -> Iterator[Probe]:
    probe = Probe()
    probe.pose = (0.2, -0.1, 0.1)
    yield probe
    probe.close()


@pytest.fixture
def start_policy(start_node: Start, tiny_bundle: Path) -> Start:
    def start(*extra: str, autostart: bool = True) -> subprocess.Popen[str]:
        words = ["--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"]
        words += ["-p", f"autostart:={'true' if autostart else 'false'}"]
        words += ["-p", "start_armed:=true", "-p", f"arm.leash_m:={LEASH_M}"]
        return start_node("policy_node", *words, *extra)

    return start


def drive(probe: Probe) -> None:
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)


def wait_for_targets(follower: PoseFollower, count: int = 10) -> None:
    before = len(follower.targets)
    assert follower.probe.wait_for(lambda: len(follower.targets) >= before + count, 20.0), (
        follower.refused,
        follower.probe.status,
    )


# -- MoveIt Servo -------------------------------------------------------------------------------
def test_every_command_passes_the_rules_of_servo(probe: Probe, start_policy: Start) -> None:
    start_policy()
    servo = ServoInput(frame=FRAME, timeout_s=0.1, max_linear_m_s=0.4, max_angular_rad_s=2.0)

    def take(message: TwistStamped) -> None:
        stamp_s = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
        servo.accept(
            values_of(message),
            frame=message.header.frame_id,
            stamp_s=stamp_s,
            now_s=probe.now_s(),
        )

    probe.node.create_subscription(TwistStamped, "/policy_node/delta_twist_cmds", take, NEWEST)
    drive(probe)
    probe.wait_for_motion()
    assert probe.wait_for(lambda: servo.accepted >= 30, 20.0)
    assert servo.twist_at(probe.now_s()).any()
    probe.say("")
    probe.wait_for_hold("no_instruction")
    assert probe.wait_for(lambda: not servo.twist_at(probe.now_s()).any(), 0.5)
    late = servo.refused.pop("stale", 0)
    assert not servo.refused, servo.refused
    assert late <= 0.1 * servo.accepted, "a machine may be late, not the stamps"
    assert servo.clamped == 0, "the arm's file keeps within what Servo allows"


# -- target poses -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("interface", "topic", "alone"),
    [("crisp_pose", "target_pose", True), ("fzi_pose", "target_frame", False)],
)
def test_an_arm_follows_targets_on_a_leash_and_a_stop_is_where_it_is(
    probe: Probe, start_policy: Start, interface: str, topic: str, alone: bool
) -> None:
    start_policy("-p", f"arm.interface:={interface}")
    arm = PoseFollower(probe, topic, alone=alone)
    drive(probe)
    start = arm.position
    wait_for_targets(arm, 30)
    assert arm.refused == []
    assert arm.position[2] > start[2] + 0.01, "the policy rises, and so must the arm"
    assert max(arm.leads_m) < LEASH_M + 0.03, "a leash, and what the arm moved since its pose"
    assert not probe.twists, "one interface, one topic"

    arm.follows = False  # something holds the arm back
    probe.spin(1.0)
    assert max(arm.leads_m[-5:]) <= LEASH_M + 1e-6
    arm.follows = True
    wait_for_targets(arm, 3)

    probe.say("")
    probe.wait_for_hold("no_instruction")
    probe.spin(0.2)
    count, last = len(arm.targets), arm.targets[-1]
    stood = arm.position
    probe.spin(0.5)
    assert len(arm.targets) == count, "a holding arm must be left in silence"
    np.testing.assert_allclose(arm.position, last, atol=2e-3)
    assert np.linalg.norm(arm.position - stood) < 0.02, "the last target is where the arm was"


def test_the_target_of_an_arm_that_is_held_back_stays_in_the_workspace(
    probe: Probe, start_policy: Start
) -> None:
    start_policy("-p", "arm.interface:=crisp_pose", "-p", "arm.workspace_max_m:=[0.54, 0.32, 0.12]")
    arm = PoseFollower(probe, "target_pose", alone=True)
    arm.follows = False
    drive(probe)  # upwards
    wait_for_targets(arm, 40)
    assert max(target[2] for target in arm.targets) == pytest.approx(0.12)


def test_without_a_fresh_pose_there_is_no_target(probe: Probe, start_policy: Start) -> None:
    start_policy("-p", "arm.interface:=crisp_pose")
    arm = PoseFollower(probe, "target_pose", alone=True)
    probe.pose, pose = None, probe.pose
    drive(probe)
    probe.wait_for_hold("stale_state")
    assert not arm.targets
    arm.follows = False
    probe.pose = pose
    wait_for_targets(arm)
    probe.pose_frame = "world"
    probe.wait_for_hold("stale_state")
    arm.targets.clear()
    probe.spin(0.5)
    assert not arm.targets


def test_beside_another_publisher_crisp_is_not_commanded(probe: Probe, start_policy: Start) -> None:
    start_policy("-p", "arm.interface:=crisp_pose", autostart=False)
    arm = PoseFollower(probe, "target_pose", alone=True)
    probe.wait_for_services()
    assert probe.request(CONFIGURE)
    rival: Any = probe.node.create_publisher(PoseStamped, arm.name, NEWEST)
    probe.spin(1.0)
    assert not probe.request(ACTIVATE)
    assert arm.name in probe.latest("error")
    assert "ignores a topic with several publishers" in probe.latest("error")

    probe.node.destroy_publisher(rival)
    assert probe.wait_for(lambda: probe.request(ACTIVATE), 10.0)
    probe.grey = 128
    probe.say(CARROT)
    wait_for_targets(arm)
    rival = probe.node.create_publisher(PoseStamped, arm.name, NEWEST)
    probe.wait_for_hold("stopped", 3.0)
    assert arm.name in probe.latest("last_stop")["detail"]
    probe.node.destroy_publisher(rival)
    assert probe.request(DEACTIVATE)


def test_a_person_who_drives_on_crisps_topic_is_no_rival_until_it_is_given_back(
    probe: Probe, start_policy: Start
) -> None:
    start_policy("-p", "arm.interface:=crisp_pose")
    arm = PoseFollower(probe, "target_pose", alone=True)
    takeover = probe.node.create_publisher(Bool, "/policy_node/takeover", NEWEST)
    drive(probe)
    wait_for_targets(arm)

    takeover.publish(Bool(data=True))
    probe.wait_for_hold("takeover")
    rival: Any = probe.node.create_publisher(PoseStamped, arm.name, NEWEST)
    probe.spin(1.0)
    assert (probe.latest("hold_reason"), probe.latest("latched_stop")) == ("takeover", None)
    probe.node.destroy_publisher(rival)
    probe.spin(0.5)
    takeover.publish(Bool(data=False))
    wait_for_targets(arm)

    takeover.publish(Bool(data=True))
    probe.wait_for_hold("takeover")
    rival = probe.node.create_publisher(PoseStamped, arm.name, NEWEST)
    probe.spin(1.0)
    heard = len(arm.targets) + len(arm.refused)
    takeover.publish(Bool(data=False))
    probe.wait_for_hold("stopped", 3.0)
    assert arm.name in probe.latest("latched_stop")
    probe.spin(0.3)
    assert len(arm.targets) + len(arm.refused) == heard, "nothing may move before it is looked at"
    probe.node.destroy_publisher(rival)


# -- grippers -----------------------------------------------------------------------------------
def test_a_trajectory_gripper_gets_one_point_ahead(probe: Probe, start_policy: Start) -> None:
    topic = "/gripper_controller/joint_trajectory"
    words = ["-p", "arm.gripper.interface:=trajectory", "-p", "arm.gripper.command_open:=0.044"]
    start_policy(*words, "-r", f"~/gripper_commands:={topic}")
    got: list[JointTrajectory] = []
    probe.node.create_subscription(JointTrajectory, topic, got.append, NEWEST)
    drive(probe)
    assert probe.wait_for(lambda: len(got) >= 3, 30.0)
    message = got[-1]
    assert message.joint_names == ["left_carriage_joint"]
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0), "start at once"
    (point,) = message.points
    assert list(point.positions) == pytest.approx([0.044 * 128 / 255])
    assert point.time_from_start.sec == 0
    assert point.time_from_start.nanosec == pytest.approx(1e8)


@pytest.mark.skipif(
    importlib.util.find_spec("control_msgs") is not None, reason="control_msgs is installed"
)
def test_an_action_gripper_without_its_package_is_said_once_and_plainly(
    probe: Probe, start_policy: Start
) -> None:
    words = ["-p", "arm.gripper.interface:=gripper_command", "-p", "arm.gripper.action:=/gripper"]
    process = start_policy(*words)
    assert probe.wait_for(lambda: bool(probe.latest("error")), 60.0)
    assert "control_msgs/GripperCommand is not there" in probe.latest("error")
    assert "ros-<distro>-control-msgs" in probe.latest("error")
    assert process.poll() is None
