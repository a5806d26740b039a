"""sim_node as a process, driven and watched over topics alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_graph import ROOT
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String

from vla_align_ros.ros.messages import image_to_rgb, pose_to_vector, stamp_to_s

LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PARAMETERS = str(ROOT / "config" / "sim.yaml")
FORWARD_M_S = 0.05


class Client(Node):
    """Hears all that the simulated robot says and keeps the latest of each."""

    def __init__(self) -> None:
        super().__init__("client")
        self.latest: dict[str, Any] = {}
        self.images: list[Image] = []
        self.image_ages_s: list[float] = []
        for kind, topic in ((PoseStamped, "ee_pose"), (JointState, "joint_states")):
            self.create_subscription(kind, f"/sim_node/{topic}", self.keep(topic), LATEST)
        self.create_subscription(Image, "/sim_node/image", self.on_image, LATEST)
        self.create_subscription(String, "/sim_node/score", self.keep("score"), 10)
        self.twists = self.create_publisher(TwistStamped, "/sim_node/delta_twist_cmds", 1)
        self.grippers = self.create_publisher(Float64MultiArray, "/sim_node/gripper_commands", 1)
        self.resets = self.create_publisher(String, "/sim_node/reset_episode", 10)

    def keep(self, topic: str) -> Callable[[Any], None]:
        return lambda message: self.latest.update({topic: message})

    def on_image(self, message: Image) -> None:
        self.images.append(message)
        self.image_ages_s.append(self.now_s() - stamp_to_s(message.header.stamp))

    def now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)

    def score(self) -> dict[str, Any]:
        return dict(json.loads(self.latest["score"].data)) if "score" in self.latest else {}

    def position(self) -> np.ndarray:
        return pose_to_vector(self.latest["ee_pose"])[:3]

    def spin_until(self, done: Callable[[], object], limit_s: float = 20.0) -> None:
        end_s = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < end_s, f"waited {limit_s} s in vain"
            rclpy.spin_once(self, timeout_sec=0.05)

    def spin_for(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            rclpy.spin_once(self, timeout_sec=0.01)

    def send_twist(self, x_m_s: float, *, age_s: float = 0.0, frame: str = "base_link") -> None:
        message = TwistStamped()
        stamp = self.get_clock().now() - rclpy.duration.Duration(seconds=age_s)
        message.header.stamp = stamp.to_msg()
        message.header.frame_id = frame
        message.twist.linear.x = x_m_s
        self.twists.publish(message)

    def drive(self, duration_s: float, x_m_s: float, **options: Any) -> None:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self.send_twist(x_m_s, **options)
            self.spin_for(0.03)

    def reset(self, identity: str, seed: int, shift: str = "none") -> dict[str, Any]:
        request = {"id": identity, "seed": seed, "shift": shift}
        self.resets.publish(String(data=json.dumps(request)))
        self.spin_until(lambda: self.score().get("id") == identity)
        return self.score()

    def first_picture(self, score: dict[str, Any]) -> np.ndarray:
        """The picture that the reset of `score` took, by its stamp."""

        def find() -> list[Image]:
            stamps = score["image_stamp"]
            return [
                m for m in self.images if [m.header.stamp.sec, m.header.stamp.nanosec] == stamps
            ]

        self.spin_until(find, 5.0)
        return image_to_rgb(find()[0])


@pytest.fixture
def client(ros: None, start_node: Callable[..., Any]) -> Iterator[Client]:
    start_node("sim_node", "--params-file", PARAMETERS)
    node = Client()
    node.spin_until(
        lambda: {"ee_pose", "joint_states", "score"} <= set(node.latest) and node.images
    )
    node.spin_until(lambda: node.count_subscribers("/sim_node/reset_episode") == 1)
    node.spin_until(lambda: node.count_subscribers("/sim_node/delta_twist_cmds") == 1)
    yield node
    node.destroy_node()


def test_moves_by_the_twist_and_stands_still_when_commands_stop(client: Client) -> None:
    client.reset("moves", seed=4)
    client.spin_for(0.3)
    start = client.position()
    client.drive(1.5, FORWARD_M_S)
    moved = client.position() - start
    assert moved[0] == pytest.approx(1.5 * FORWARD_M_S, rel=0.35)
    assert np.abs(moved[1:]).max() < 0.01
    client.spin_for(0.5)  # 0.1 s of command timeout, and the arm settles
    rest = client.position()
    client.spin_for(0.5)
    assert np.linalg.norm(client.position() - rest) < 1e-3
    commands = client.score()["commands"]
    assert commands["expired"] >= 1
    assert 20.0 < commands["command_rate_hz"] < 40.0


def test_refuses_old_commands_and_those_in_another_frame_and_counts_them(client: Client) -> None:
    client.reset("refuses", seed=4)
    client.spin_for(0.5)
    start = client.position()
    client.drive(0.5, FORWARD_M_S, age_s=0.5)
    client.drive(0.5, FORWARD_M_S, frame="tool0")
    client.drive(0.3, float("nan"))
    client.spin_for(0.2)
    assert np.linalg.norm(client.position() - start) < 1e-3
    commands = client.score()["commands"]
    assert commands["accepted"] == 0
    assert min(commands[f"refused_{why}"] for why in ("stale", "wrong_frame", "non_finite")) > 3


def test_the_gripper_follows_its_command_and_reports_metres(client: Client) -> None:
    client.reset("grips", seed=4)
    client.spin_until(lambda: client.latest["joint_states"].position[0] > 0.040)
    client.grippers.publish(Float64MultiArray(data=[0.0]))
    client.spin_until(lambda: client.latest["joint_states"].position[0] < 0.005)
    client.grippers.publish(Float64MultiArray(data=[float("nan")]))
    client.grippers.publish(Float64MultiArray(data=[1.0, 1.0]))
    client.spin_until(lambda: client.score()["gripper_refused"] >= 1)
    assert client.latest["joint_states"].position[0] < 0.005
    client.grippers.publish(Float64MultiArray(data=[1.0]))
    client.spin_until(lambda: client.latest["joint_states"].position[0] > 0.040)
    assert client.latest["joint_states"].name == ["left_carriage_joint"]


def test_pictures_are_fresh_regular_and_rgb(client: Client) -> None:
    client.spin_for(0.5)
    client.images.clear()
    client.image_ages_s.clear()
    before = client.score()
    client.spin_for(3.0)
    score = client.score()
    sent = score["frames_sent"] - before["frames_sent"]
    assert sent == pytest.approx(10.0 * (score["time_s"] - before["time_s"]), abs=1)
    assert len(client.images) == pytest.approx(sent, abs=2)
    assert np.median(client.image_ages_s) < 0.15
    assert min(client.image_ages_s) > 0.0
    message = client.images[-1]
    assert (message.encoding, message.height, message.width, message.step) == (
        "rgb8",
        224,
        224,
        672,
    )
    assert message.header.frame_id == "front"
    assert image_to_rgb(message).std() > 10
    assert score["real_time_factor"] > 0.6


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(client: Client) -> None:
    first = client.reset("a", seed=11)
    picture = client.first_picture(first)
    client.drive(0.6, FORWARD_M_S)
    other = client.first_picture(client.reset("b", seed=12))
    again = client.reset("c", seed=11)
    np.testing.assert_array_equal(client.first_picture(again), picture)
    assert np.abs(other.astype(int) - picture).mean() > 3
    for score in (first, again):
        assert (score["seed"], score["shift"], score["error"]) == (11, "none", None)
        assert score["instruction"] in [task["instruction"] for task in score["tasks"]]
        assert not score["succeeded"]
    assert first["instruction"] == again["instruction"]
    assert again["time_s"] < 0.5


def test_a_reset_ends_the_motion(client: Client) -> None:
    client.drive(0.4, FORWARD_M_S)
    score = client.reset("still", seed=11)
    assert score["commands"]["accepted"] == 0
    client.spin_for(0.4)
    start = client.position()
    client.spin_for(0.4)
    assert np.linalg.norm(client.position() - start) < 1e-3


def test_a_bad_reset_is_answered_with_its_error_and_the_robot_lives_on(client: Client) -> None:
    score = client.reset("unknown", seed=1, shift="martian")
    assert "martian" in score["error"]
    assert "unseen_table" in score["error"], "the answer lists the valid names"
    assert "0 or more" in client.reset("negative", seed=-1)["error"]
    client.resets.publish(String(data="no json"))
    assert client.reset("good", seed=1, shift="unseen_table")["error"] is None
