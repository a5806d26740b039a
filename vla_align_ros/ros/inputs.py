"""Subscribes to what the policy looks at and hands it to the runner, each topic once."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from vla_align_ros.errors import ConfigurationError, ContractError
from vla_align_ros.ros.messages import (
    compressed_to_rgb,
    image_to_rgb,
    pose_to_vector,
    stamp_to_s,
)
from vla_align_ros.ros.overrides import make_overridable
from vla_align_ros.ros.params import PolicyParameters
from vla_align_ros.ros.watching import WatchedSource
from vla_align_ros.runtime.arrivals import Arrivals
from vla_align_ros.runtime.observing import tell_camera
from vla_align_ros.runtime.runner import PolicyRunner

LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# Drivers share the topic: at 500 Hz an arm's would push the gripper's out of a queue of one. Where
# the machine is too slow for them all the queue is always full, and its length is their age.
JOINTS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
THROTTLE_S = 2.0


class Inputs:
    """The subscriptions of one configuration; `destroy` takes them off the graph.

    A policy with one camera looks at `~/image`, one with several at `~/<camera>/image` each.
    Depth 1, because an image that waited in a queue is an image of the past; a few for the joints,
    of which one message need not name the gripper's. What a topic carries is checked here: a
    message that is refused is counted, logged (throttled) and not looked at, so that it ends in a
    stale_image or stale_state hold; where no other comes, `troubles` says why.

    Raises ConfigurationError where the policy needs an input whose source has no name.
    """

    def __init__(self, node: Node, runner: PolicyRunner, parameters: PolicyParameters) -> None:
        if runner.state.needs_gripper and not parameters.arm.gripper_joint:
            raise ConfigurationError(
                "the policy looks at the gripper, and its joint has no name",
                got="an empty arm.gripper.joint",
                expected="a joint of ~/joint_states",
                fix="name it in the robot's file (config/robots)",
            )
        self._node = node
        self._runner = runner
        self._arm = parameters.arm
        self._subscriptions: list[Any] = []
        self._logged_s: dict[str, float] = {}  # when what is refused was last logged
        self.sources: list[WatchedSource] = []
        """What is subscribed to and may fail to arrive: cameras by name, pose, joints."""
        try:
            self._join(parameters)
        except BaseException:  # a qos_override that is none
            self.destroy()
            raise

    def _join(self, parameters: PolicyParameters) -> None:
        for camera in self._runner.observer.cameras:
            self._listen_to_camera(camera, parameters)
        self._listen(String, "~/instruction", self._on_instruction, RELIABLE)
        if self._runner.needs_pose:
            self._watch("pose", PoseStamped, "~/ee_pose", self._on_pose)
        if self._runner.wants_gripper and parameters.arm.gripper_joint:
            self._watch("joints", JointState, "~/joint_states", self._on_joints, JOINTS)

    def destroy(self) -> None:
        """Unsubscribe from everything."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _listen_to_camera(self, camera: str, parameters: PolicyParameters) -> None:
        alone = len(self._runner.observer.cameras) == 1
        topic = "~/image" if alone else f"~/{camera}/image"
        raw = parameters.image_transport == "raw"
        source = self._watch(
            tell_camera(camera),
            Image if raw else CompressedImage,
            topic if raw else f"{topic}/compressed",
            functools.partial(self._on_image if raw else self._on_compressed, camera),
        )
        source.arrivals.expected_hz = parameters.expected_image_rate_hz
        if raw:
            source.likely_bytes = 3 * self._runner.observer.pixels[camera]

    def _watch(
        self,
        name: str,
        kind: Any,
        topic: str,
        callback: Callable[[Any], str | None],
        qos: QoSProfile = LATEST,
    ) -> WatchedSource:
        """Subscribe to a source; `callback` returns why a message is of no use, None if it is."""
        arrivals = Arrivals()

        def receive(message: Any) -> None:
            size = len(message.data) if kind in (Image, CompressedImage) else 0
            now_s = time.monotonic()
            arrivals.note(now_s, size)
            arrivals.note_use(now_s, callback(message))

        def lose(event: Any) -> None:
            arrivals.note_lost(event.total_count_change, time.monotonic())

        subscription = self._listen(kind, topic, receive, qos, lose)
        reliable = subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        source = WatchedSource(
            name, subscription.topic_name, kind, reliable=reliable, arrivals=arrivals
        )
        self.sources.append(source)
        return source

    def _listen(
        self,
        kind: Any,
        topic: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        on_lost: Callable[[Any], None] | None = None,
    ) -> Any:
        def subscribe(events: SubscriptionEventCallbacks) -> Any:
            def make(profile: QoSProfile, options: QoSOverridingOptions) -> Any:
                return self._node.create_subscription(
                    kind,
                    topic,
                    callback,
                    profile,
                    event_callbacks=events,
                    qos_overriding_options=options,
                )

            return make_overridable(self._node, topic, qos, make)

        try:
            subscription = subscribe(SubscriptionEventCallbacks(message_lost=on_lost))
        except UnsupportedEventTypeError:  # a middleware that does not tell what it loses
            subscription = subscribe(SubscriptionEventCallbacks())
        self._subscriptions.append(subscription)
        return subscription

    def _on_image(self, camera: str, message: Image) -> str | None:
        try:
            image = image_to_rgb(message)
        except ContractError as error:
            several = len(self._runner.observer.cameras) > 1
            return self._refuse("image", error, f" of {camera}" if several else "")
        self._runner.take_image(lambda: image, self._stamp_s(message), camera)
        return None

    def _on_compressed(self, camera: str, message: CompressedImage) -> None:
        # Decoding takes milliseconds, so the inference thread does it, for the frames it uses.
        self._runner.take_image(lambda: compressed_to_rgb(message), self._stamp_s(message), camera)

    def _on_instruction(self, message: String) -> None:
        if not self._runner.active:
            self._node.get_logger().warning("instruction ignored: the node is not active")
            return
        try:
            if self._runner.set_instruction(message.data):
                self._node.get_logger().info(f"instruction: {self._runner.instruction or 'none'}")
        except ContractError as error:
            self._refuse("instruction", error)

    def _on_pose(self, message: PoseStamped) -> str | None:
        try:
            if message.header.frame_id != self._arm.command_frame:
                raise ContractError(
                    "an end-effector pose is in the wrong frame",
                    got=message.header.frame_id or "no frame",
                    expected=self._arm.command_frame,
                    fix="transform it before it reaches ~/ee_pose",
                )
            self._runner.take_pose(pose_to_vector(message), self._stamp_s(message))
        except ContractError as error:
            return self._refuse("pose", error)
        return None

    def _on_joints(self, message: JointState) -> str | None:
        try:
            fraction = self._arm.fraction_open(message)
        except ContractError as error:
            return self._refuse("joint_state", error)
        if fraction is not None:
            self._runner.take_gripper(fraction, self._stamp_s(message))
            return None
        joint = self._arm.gripper_joint
        if joint in message.name:
            return f"joint_states gives {joint} no position"
        names = ", ".join(message.name) or "no joint"
        return f"joint_states names {names} and not {joint}; correct arm.gripper.joint"

    def _refuse(self, what: str, error: Exception, of: str = "") -> str:
        """Count what is refused, and log it once in a while; returns why.

        Throttled here, for each input: rclpy's throttle is one for this line, so that a pose that
        is refused all the time would leave no room for a word on anything else.
        """
        self._runner.metrics.count(f"{what}s_refused")
        now_s = time.monotonic()
        if now_s - self._logged_s.get(what + of, -math.inf) >= THROTTLE_S:
            self._logged_s[what + of] = now_s
            self._node.get_logger().error(f"{what}{of} refused: {error}")
        return str(error)

    def _stamp_s(self, message: Any) -> float:
        """The message's stamp in seconds; now, where its driver stamps nothing."""
        now_s = float(self._node.get_clock().now().nanoseconds * 1e-9)
        return stamp_to_s(message.header.stamp) or now_s
