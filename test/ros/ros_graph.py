"""The other side of the graph for tests of policy_node: a camera, an operator and an arm."""

from __future__ import annotations

import array
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String

ROOT = Path(__file__).resolve().parents[2]
WIDOWX = ROOT / "config" / "robots" / "widowx_sim.yaml"

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE, CLEANUP = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
CAMERA_PERIOD_S = 0.04


class Probe:
    """Publishes a uniform picture at 25 Hz while it spins, and records what policy_node sends.

    `grey` is the picture's brightness 0..255, None while the camera is dead. `twists` holds
    (arrival at the middleware in ROS seconds, message); `pose` (x, y, z) and `finger_m` are sent
    with every picture.
    """

    def __init__(self) -> None:
        self.node = rclpy.create_node("probe")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.grey: int | None = None
        self.compressed = False
        self.pose: tuple[float, float, float] | None = (0.3, 0.0, 0.2)
        self.pose_frame = "base_link"
        self.finger_m: float | None = None
        self.twists: list[tuple[float, TwistStamped]] = []
        self.grippers: list[Float64MultiArray] = []
        self.chunks: list[Float64MultiArray] = []
        self.status: list[dict[str, Any]] = []
        self.diagnostics: list[dict[str, str]] = []
        self.verdicts: list[tuple[int, str]] = []
        self.frames_sent = 0
        self._last_frame_s = 0.0
        make, listen = self.node.create_publisher, self.node.create_subscription
        name = "/policy_node"
        self._image = make(Image, f"{name}/image", BEST_EFFORT)
        self._jpeg = make(CompressedImage, f"{name}/image/compressed", BEST_EFFORT)
        self._instruction = make(String, f"{name}/instruction", RELIABLE)
        self._pose = make(PoseStamped, f"{name}/ee_pose", BEST_EFFORT)
        self._joints = make(JointState, f"{name}/joint_states", BEST_EFFORT)
        listen(TwistStamped, f"{name}/delta_twist_cmds", self._on_twist, RELIABLE)
        listen(Float64MultiArray, f"{name}/gripper_commands", self.grippers.append, RELIABLE)
        listen(Float64MultiArray, f"{name}/action_chunk", self.chunks.append, RELIABLE)
        listen(String, f"{name}/status", lambda m: self.status.append(json.loads(m.data)), LATCHED)
        listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        self._change_state = self.node.create_client(ChangeState, f"{name}/change_state")
        self._get_state = self.node.create_client(GetState, f"{name}/get_state")

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()

    def now_s(self) -> float:
        return float(self.node.get_clock().now().nanoseconds * 1e-9)

    def spin(self, seconds: float) -> None:
        """Let time pass."""
        self.wait_for(lambda: False, seconds)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        """Let time pass until something happened; False if it did not."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if happened():
                return True
            if self.grey is not None and time.monotonic() - self._last_frame_s >= CAMERA_PERIOD_S:
                self._last_frame_s = time.monotonic()
                self.publish_frame()
            self.executor.spin_once(timeout_sec=0.01)
        return happened()

    def say(self, instruction: str) -> None:
        """Publish an instruction as soon as the node listens."""
        assert self.wait_for(lambda: self._instruction.get_subscription_count() > 0)
        self._instruction.publish(String(data=instruction))

    def wait_for_state(self, state: str, timeout_s: float = 90.0) -> None:
        assert self.wait_for(lambda: self.latest("state") == state, timeout_s), self.status

    def wait_for_hold(self, reason: str | None, timeout_s: float = 30.0) -> None:
        assert self.wait_for(lambda: self.latest("hold_reason") == reason, timeout_s), self.status

    def latest(self, key: str) -> Any:
        return self.status[-1][key] if self.status else None

    def wait_for_motion(self, timeout_s: float = 30.0) -> None:
        """Wait for three further commands that are not zero."""
        count = len(self.moving())
        assert self.wait_for(lambda: len(self.moving()) >= count + 3, timeout_s), self.status

    def moving(self) -> list[TwistStamped]:
        return [message for _, message in self.twists if any(values_of(message))]

    def wait_for_services(self) -> None:
        """Wait until an answer comes back: a server is seen before its answers find the way."""
        assert self._get_state.wait_for_service(90.0)
        futures = []
        for _ in range(10):
            futures.append(self._get_state.call_async(GetState.Request()))
            if self.wait_for(lambda: any(future.done() for future in futures), 2.0):
                break
        assert self.wait_for(self._change_state.service_is_ready)
        self.spin(0.2)

    def request(self, transition: int) -> bool:
        """Ask for a lifecycle transition and wait for the answer."""
        future = self._change_state.call_async(
            ChangeState.Request(transition=Transition(id=transition))
        )
        assert self.wait_for(future.done, 20.0), "no answer to the request"
        return bool(future.result().success)

    def publish_frame(self) -> float:
        """Publish picture and state under the present stamp; returns it in seconds."""
        self.frames_sent += 1
        stamp = self.node.get_clock().now()
        picture = np.full((48, 64, 3), self.grey, np.uint8)
        if self.pose is not None:
            pose = PoseStamped()
            pose.header.stamp, pose.header.frame_id = stamp.to_msg(), self.pose_frame
            pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = self.pose
            self._pose.publish(pose)
        if self.finger_m is not None:
            joints = JointState(name=["left_carriage_joint"], position=[self.finger_m])
            joints.header.stamp = stamp.to_msg()
            self._joints.publish(joints)
        if self.compressed:
            jpeg = CompressedImage(format="jpeg")
            jpeg.header.stamp = stamp.to_msg()
            jpeg.data = array.array("B", cv2.imencode(".jpg", picture)[1].tobytes())
            self._jpeg.publish(jpeg)
        else:
            image = Image(height=48, width=64, encoding="rgb8", step=192)
            image.header.stamp = stamp.to_msg()
            image.data = array.array("B", picture.tobytes())
            self._image.publish(image)
        return float(stamp.nanoseconds * 1e-9)

    def _on_twist(self, message: TwistStamped, info: Mapping[str, int]) -> None:
        self.twists.append((1e-9 * info["received_timestamp"], message))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics.append({item.key: item.value for item in status.values})
            self.verdicts.append((int.from_bytes(status.level, "little"), status.message))


def values_of(message: TwistStamped) -> list[float]:
    """The twist (6,) of a message."""
    linear, angular = message.twist.linear, message.twist.angular
    return [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
