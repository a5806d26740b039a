"""What every arm and gripper offers the node, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.overrides import make_overridable
from vla_align_ros.runtime.safety import Command

COMMAND_QOS_DEPTH = 1
WATCHDOG = "watchdog_node"  # publishes one zero twist, and only when this node cannot
WATCHED = "~/watched"  # what it answers on, whatever it is called

Measure = Callable[[], "NDArray[np.float64] | None"]
"""Gives the end effector's pose (6,) x, y, z, roll, pitch, yaw; None where none is fresh."""


class Arm(Protocol):
    """Commands one arm and its gripper; inactive lifecycle publishers send nothing."""

    def send(self, command: Command, stamp: Time) -> None:
        """Publish a command under a fresh stamp."""
        ...

    def stop(self, stamp: Time) -> None:
        """Publish once what makes the arm stand still; the gripper keeps what it holds."""
        ...

    def halt_gripper(self) -> None:
        """End what the gripper still does by a command of ours, if it can be told to; no wait."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until the controller has acknowledged the last command; False if it has not."""
        ...

    def rivals(self) -> list[str]:
        """Topics of ours on which somebody else publishes too: two masters move one arm."""
        ...

    def contested(self) -> list[str]:
        """Those of them whose controller listens to nobody then: we must not command it either."""
        ...

    def troubles(self) -> dict[str, str]:
        """By part of the arm, why it may not do what it is sent, and what to do about it."""
        ...

    def destroy(self) -> None:
        """Leave the graph."""
        ...


class Gripper(Protocol):
    """Commands a gripper by its opening."""

    def send(self, fraction_open: float, stamp: Time) -> None:
        """Ask for an opening, 0 closed .. 1 open."""
        ...

    def rest(self) -> None:
        """Motion ended: until the next opening somebody else may move it."""
        ...

    def halt(self) -> None:
        """End what is still under way, where the gripper can be told to; never wait for it."""
        ...

    def rivals(self) -> list[str]:
        """Topics of ours on which somebody else publishes too."""
        ...

    def trouble(self) -> str | None:
        """Why it may not do what it is sent, and what to do about it; None if nothing is known."""
        ...

    def destroy(self) -> None:
        """Leave the graph."""
        ...


class CommandTopic:
    """A lifecycle publisher of commands: reliable, depth 1, its QoS open to overrides."""

    def __init__(self, node: LifecycleNode, kind: type[Any], topic: str) -> None:
        self._node = node
        self.publisher = make_overridable(
            node,
            topic,
            QoSProfile(depth=COMMAND_QOS_DEPTH, reliability=ReliabilityPolicy.RELIABLE),
            lambda profile, options: node.create_lifecycle_publisher(
                kind, topic, profile, qos_overriding_options=options
            ),
        )
        self.name: str = self.publisher.topic_name

    def publish(self, message: Any) -> None:
        """Send, if the node is active."""
        self.publisher.publish(message)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the controller has acknowledged the last command; False if it has not."""
        return bool(self.publisher.wait_for_all_acked(Duration(seconds=timeout_s)))

    def has_rival(self) -> bool:
        """Whether somebody else publishes here, other than our watchdog."""
        infos = self._node.get_publishers_info_by_topic(self.name)
        if len(infos) <= 1:  # this node alone
            return False
        answering = self._node.get_publishers_info_by_topic(WATCHED)
        return len(leave_watchdogs(infos, answering)) > 1

    def destroy(self) -> None:
        """Take the publisher off the graph."""
        self._node.destroy_lifecycle_publisher(self.publisher)


def leave_watchdogs(ends: Sequence[Any], answering: Iterable[Any]) -> list[Any]:
    """The ends of a topic that are no watchdog's: by its name, or among those that answer."""
    watchdogs = {(info.node_namespace, info.node_name) for info in answering}
    return [
        info
        for info in ends
        if info.node_name != WATCHDOG and (info.node_namespace, info.node_name) not in watchdogs
    ]


class TopicArm:
    """What arms have in common that are commanded on one topic, with a gripper beside it."""

    exclusive = False
    """Whether the arm's controller refuses to listen where two publish on its topic."""

    def __init__(self, config: ArmConfig, topic: CommandTopic, gripper: Gripper) -> None:
        self.config = config
        self._topic = topic
        self._gripper = gripper

    def halt_gripper(self) -> None:
        """End what the gripper still does by a command of ours, if it can be told to; no wait."""
        self._gripper.halt()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the controller has acknowledged the last command; False if it has not."""
        return self._topic.flush(timeout_s)

    def rivals(self) -> list[str]:
        """Topics of ours on which somebody else publishes too: two masters move one arm."""
        return [*([self._topic.name] if self._topic.has_rival() else []), *self._gripper.rivals()]

    def contested(self) -> list[str]:
        """The arm's own topic, if its controller listens to nobody there now."""
        return [self._topic.name] if self.exclusive and self._topic.has_rival() else []

    def troubles(self) -> dict[str, str]:
        """The gripper's, if it has one."""
        trouble = self._gripper.trouble()
        return {} if trouble is None else {"gripper": trouble}

    def destroy(self) -> None:
        """Take the publishers off the graph."""
        self._topic.destroy()
        self._gripper.destroy()


def check_alone(arm: Arm) -> None:
    """ConfigurationError if the arm's controller would ignore us beside another publisher."""
    rivals = arm.contested()
    if rivals:
        raise ConfigurationError(
            "another node commands this arm",
            got=f"a second publisher on {', '.join(rivals)}",
            expected="this node alone: the controller ignores a topic with several publishers",
            fix="end the other publisher (a teleoperation, a recorder that replays)",
        )
